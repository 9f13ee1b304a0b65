"""Measured rates of the GPU, its link and the CPU, for the cost model of prefill.

Measured at load, with the copies and products of a prefill step, in a few tenths of a second plus
the time to compile the GPU's kernels if they are not cached.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from hybridmoe.device.streams import host_empty
from hybridmoe.experts.gpu.prefill_experts import AddExpert, Streams, slot_parts
from hybridmoe.experts.gpu.weight_stream import COPY_THREADS, SlotPart, fill
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import isa
from hybridmoe.hardware.machine import measure
from hybridmoe.hardware.topology import num_threads
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["measure_gpu", "with_cpu"]

_ROUNDS = 5  # the fastest counts: other work on the machine only ever slows it
_REPEATS = 4  # of products in a round, so that launches run ahead as they do in a prompt
_SOURCE_BYTES = 128 << 20  # more than most caches hold
FEW_TOKENS, MANY_TOKENS = 17, 512  # bound by dequantizing, bound by products


def measure_gpu(
    experts: ExpertWeights,
    layout: "SlotLayout",
    add_expert: AddExpert,
    streams: Streams,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> GpuRates:
    """Measure the rates of an idle GPU with one expert of this layer.

    `read` includes launches, so that the time predicted for few tokens is the measured one.
    """
    num_bytes = experts.expert_bytes
    num_params = sum(w.rows * w.cols for w in experts)
    buffer = host_empty((layout.slot_bytes,), torch.uint8, device)
    slot = torch.empty(layout.slot_bytes, dtype=torch.uint8, device=device)

    def fastest(run: Callable[[int], object]) -> float:
        seconds = []
        for number in range(-1, _ROUNDS):
            started = clock()
            run(number)
            seconds.append(clock() - started)
        return min(seconds[1:])  # the first is a warm-up

    def to_gpu(_: int) -> None:
        streams.link.copy(slot, buffer)
        streams.link.synchronize()

    with ThreadPoolExecutor(COPY_THREADS, "expert-copy") as threads:
        copy_s = fastest(_copies(threads, experts, layout, buffer, num_bytes))
        fill(threads, buffer, slot_parts(experts, layout, 0))
    link_s = fastest(to_gpu)
    few_s, many_s = (
        fastest(_products(add_expert, streams, device, slot, layout, tokens)) / _REPEATS
        for tokens in (FEW_TOKENS, MANY_TOKENS)
    )
    dequantized_bytes = 2 * num_params
    read = (num_bytes + 2 * dequantized_bytes) / few_s
    multiplying_s = many_s - (num_bytes + dequantized_bytes) / read
    # At least the time of reading the dequantized weights, which few tokens' products take.
    multiplying_s = max(multiplying_s, dequantized_bytes / read)
    return GpuRates(
        read=read,
        ops=2 * num_params * MANY_TOKENS / multiplying_s,
        pcie=layout.slot_bytes / link_s,
        copy=num_bytes / copy_s,
        copy_cpu=min(1.0, COPY_THREADS / num_threads()),
        expert_s=0.0,
    )


def with_cpu(gpu: GpuRates) -> Rates:
    """Add the CPU's rates, measured in about a second."""
    limits, kernels = measure(quick=True), isa.active()
    tiles = limits.amx_bf16 if kernels == "amx" else None
    return rates_of(
        kernels,
        dram=limits.read.all,
        peak_ops=(tiles or limits.int8).all,
        float_ops=limits.float32.all,
        gpu=gpu,
    )


def _copies(
    threads: ThreadPoolExecutor,
    experts: ExpertWeights,
    layout: "SlotLayout",
    buffer: torch.Tensor,
    num_bytes: int,
) -> Callable[[int], object]:
    """Make a copy of one expert's bytes from memory that no CPU cache holds."""
    offsets = (0, layout.up_offset, layout.down_offset)
    source = np.ones(max(_SOURCE_BYTES, num_bytes), np.uint8)  # written, so that its pages exist
    num_copies = len(source) // num_bytes

    def run(number: int) -> None:
        start = number % num_copies * num_bytes
        parts = []
        for offset, size in zip(offsets, experts.matrix_bytes, strict=True):
            parts.append(SlotPart(offset, source[start : start + size]))
            start += size
        fill(threads, buffer, parts)

    return run


def _products(
    add_expert: AddExpert,
    streams: Streams,
    device: torch.device,
    slot: torch.Tensor,
    layout: "SlotLayout",
    num_tokens: int,
) -> Callable[[int], object]:
    """Make `_REPEATS` products of `num_tokens` with one expert in `slot`."""
    x = torch.full((num_tokens, layout.hidden), 0.01, device=device)
    out, rows = torch.zeros_like(x), torch.arange(num_tokens, device=device)
    factor = torch.ones((num_tokens, 1), device=device)

    def run(_: int) -> None:
        for _ in range(_REPEATS):
            add_expert(out, x, rows, factor, slot, layout)
        streams.main.synchronize()

    return run

"""What a card and the way to it reach on this machine: the numbers of the prompt's cost model.

Measured at the start, with the very copies and products that a prompt's step makes, in a few tenths
of a second; the card's kernels are compiled on the way, where they are not yet.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from hybridmoe.device.streams import host_empty
from hybridmoe.experts.gpu.prefill_experts import AddExpert, Streams, pieces_of
from hybridmoe.experts.gpu.weight_stream import COPY_THREADS, Piece, fill
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import isa
from hybridmoe.hardware.machine import measure
from hybridmoe.hardware.topology import num_threads
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["measure_gpu", "with_cpu"]

_TURNS = 5  # the fastest counts: what else the machine does only ever slows it
_REPEATS = 4  # of products in a turn, so that launches run ahead as they do in a prompt
_SOURCE_BYTES = 128 << 20  # more than most caches hold
FEW_TOKENS, MANY_TOKENS = 17, 512  # decoding is the limit, and products are


def measure_gpu(
    experts: ExpertWeights,
    layout: "SlotLayout",
    add_expert: AddExpert,
    streams: Streams,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> GpuRates:
    """Rates of a card with nothing else to do, by one expert of this layer.

    Launches are part of `read`: with few tokens, an expert takes as long as it is measured to.
    """
    num_bytes = experts.expert_bytes
    num_params = sum(w.rows * w.cols for w in experts)
    buffer = host_empty((layout.slot_bytes,), torch.uint8, device)
    slot = torch.empty(layout.slot_bytes, dtype=torch.uint8, device=device)

    def fastest(run: Callable[[int], object]) -> float:
        seconds = []
        for turn in range(-1, _TURNS):
            started = clock()
            run(turn)
            seconds.append(clock() - started)
        return min(seconds[1:])  # the first warmed up

    def to_card(_: int) -> None:
        streams.link.copy(slot, buffer)
        streams.link.synchronize()

    with ThreadPoolExecutor(COPY_THREADS, "expert-copy") as threads:
        copy_s = fastest(_copies(threads, experts, layout, buffer, num_bytes))
        fill(threads, buffer, pieces_of(experts, layout, 0))
    link_s = fastest(to_card)
    few_s, many_s = (
        fastest(_products(add_expert, streams, device, slot, layout, tokens)) / _REPEATS
        for tokens in (FEW_TOKENS, MANY_TOKENS)
    )
    decoded_bytes = 2 * num_params
    read = (num_bytes + 2 * decoded_bytes) / few_s
    multiplying_s = many_s - (num_bytes + decoded_bytes) / read
    # No faster than the few tokens' products, which took the rest of their time.
    multiplying_s = max(multiplying_s, decoded_bytes / read)
    return GpuRates(
        read=read,
        ops=2 * num_params * MANY_TOKENS / multiplying_s,
        pcie=layout.slot_bytes / link_s,
        copy=num_bytes / copy_s,
        copy_cpu=min(1.0, COPY_THREADS / num_threads()),
        expert_s=0.0,
    )


def with_cpu(gpu: GpuRates) -> Rates:
    """The rates of this machine: a card's, and the CPU's as measured now, in about a second."""
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
    """Copies of as many bytes as an expert has, from memory that no cache holds."""
    offsets = (0, layout.up_offset, layout.down_offset)
    source = np.ones(max(_SOURCE_BYTES, num_bytes), np.uint8)  # written, so that pages are there
    num_places = len(source) // num_bytes

    def run(turn: int) -> None:
        start = turn % num_places * num_bytes
        pieces = []
        for offset, size in zip(offsets, experts.matrix_bytes, strict=True):
            pieces.append(Piece(offset, source[start : start + size]))
            start += size
        fill(threads, buffer, pieces)

    return run


def _products(
    add_expert: AddExpert,
    streams: Streams,
    device: torch.device,
    slot: torch.Tensor,
    layout: "SlotLayout",
    num_tokens: int,
) -> Callable[[int], object]:
    x = torch.full((num_tokens, layout.hidden), 0.01, device=device)
    out, rows = torch.zeros_like(x), torch.arange(num_tokens, device=device)
    factor = torch.ones((num_tokens, 1), device=device)

    def run(_: int) -> None:
        for _ in range(_REPEATS):
            add_expert(out, x, rows, factor, slot, layout)
        streams.main.synchronize()

    return run

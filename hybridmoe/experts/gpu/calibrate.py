"""Measured rates of the GPU, its link and the CPU, for the cost model of prefill.

Measured at load, with the copies and products of a prefill step, in a few tenths of a second plus
the time to compile the GPU's kernels if they are not cached.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.experts.gpu.prefill_experts import AddExperts, Streams
from hybridmoe.experts.gpu.weight_stream import PIECE_BYTES, fill
from hybridmoe.experts.measured_rates import measured_rates
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware.topology import num_threads
from hybridmoe.kernels.expert_groups import ExpertGroup, LayerStates, tile_rows, tiles_of
from hybridmoe.kernels.ops import expert_ffn
from hybridmoe.planning.prefill_split import cpu_products_s, group_size
from hybridmoe.planning.rates import GpuRates, Rates

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["MeasuredGpu", "measure_gpu", "with_cpu"]

_ROUNDS = 5  # the fastest counts: other work on the machine only ever slows it
_REPEATS = 4  # of products in a round, so that launches run ahead as they do in a prompt
_SOURCE_BYTES = 128 << 20  # more than most caches hold
FEW_TOKENS, MANY_TOKENS = 17, 512  # of an expert: bound by dequantizing, bound by products
CPU_TOKENS = 64  # of an expert: bound by products
_CPU_EXPERTS, _CPU_ROUNDS = 8, 3
COPY_THREADS = (2, 4, 8, 12)  # the first as fast as the link


class MeasuredGpu(NamedTuple):
    """Rates, and the threads that copy memory which is not registered."""

    rates: GpuRates
    threads: _C.CopyThreads


def measure_gpu(
    experts: ExpertWeights,
    layout: "SlotLayout",
    add_experts: AddExperts,
    streams: Streams,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> MeasuredGpu:
    """Measure the rates of an idle GPU with experts of this layer.

    `read` includes launches, so that the time predicted for few tokens is the measured one.
    """
    num_bytes = experts.expert_bytes
    num_params = sum(w.rows * w.cols for w in experts)
    buffer = host_empty((layout.slot_bytes,), torch.uint8, device).zero_()
    num_grouped = group_size(layout.hidden, layout.inter)
    shape = (num_grouped, layout.slot_bytes)
    slots = torch.zeros(shape, dtype=torch.uint8, device=device)  # any weights will do

    def fastest(run: Callable[[int], object]) -> float:
        seconds = []
        for number in range(-1, _ROUNDS):
            started = clock()
            run(number)
            seconds.append(clock() - started)
        return min(seconds[1:])  # the first is a warm-up

    def to_gpu(_: int) -> None:
        streams.link.copy(slots[0], buffer)
        streams.link.synchronize()

    link_s = fastest(to_gpu)
    pcie = layout.slot_bytes / link_s
    source = torch.ones(max(_SOURCE_BYTES, num_bytes), dtype=torch.uint8)  # so its pages exist
    piece = buffer[: min(PIECE_BYTES, num_bytes)]
    copy, threads = 0.0, _C.CopyThreads(1)
    for count in COPY_THREADS:
        if copy and (copy >= pcie or count > num_threads()):
            break
        more = _C.CopyThreads(count)
        rate = piece.nbytes / fastest(_copies(more, piece, source))
        if rate > copy:
            copy, threads = rate, more
    few_s, many_s = (
        fastest(_products(add_experts, streams, slots, layout, tokens)) / _REPEATS / num_grouped
        for tokens in (FEW_TOKENS, MANY_TOKENS)
    )
    dequantized_bytes = 2 * num_params
    read = (num_bytes + 2 * dequantized_bytes) / few_s
    multiplying_s = many_s - (num_bytes + dequantized_bytes) / read
    # At least the time of reading the dequantized weights, which few tokens' products take.
    multiplying_s = max(multiplying_s, dequantized_bytes / read)
    rates = GpuRates(
        read=read,
        ops=2 * num_params * MANY_TOKENS / multiplying_s,
        pcie=pcie,
        copy=copy or None,
        copy_cpu=min(1.0, threads.num_threads / num_threads()),
        expert_s=0.0,
    )
    return MeasuredGpu(rates, threads)


def with_cpu(
    gpu: GpuRates,
    experts: ExpertWeights,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rates:
    """Add the CPU's rates, measured in about a second; that of products with these experts."""
    rates = measured_rates(gpu=gpu)
    # Kernels reach a share of the peak that depends on the number of cores, too.
    predicted_s = cpu_products_s(experts.parts, rates, CPU_TOKENS)
    return replace(rates, ops=rates.ops * predicted_s / _cpu_expert_s(experts, clock))


def _cpu_expert_s(experts: ExpertWeights, clock: Callable[[], float]) -> float:
    """Measure the CPU's seconds of an expert with CPU_TOKENS, several at once."""
    num = min(_CPU_EXPERTS, experts.gate.batch)
    x = torch.full((CPU_TOKENS, experts.gate.cols), 0.01)
    ids = torch.arange(num, dtype=torch.int32).repeat(CPU_TOKENS, 1)
    weights = torch.ones(ids.shape)
    seconds = []
    for _ in range(_CPU_ROUNDS):
        started = clock()
        expert_ffn(x, ids, weights, *experts)
        seconds.append(clock() - started)
    return min(seconds[1:]) / num  # the first is a warm-up, and reads the file


def _copies(threads: _C.CopyThreads, piece: Tensor, source: Tensor) -> Callable[[int], object]:
    """Make a copy of one piece from memory that no CPU cache holds."""
    num_pieces = source.nbytes // piece.nbytes

    def run(number: int) -> None:
        start = number % num_pieces * piece.nbytes
        fill(threads, piece, source[start : start + piece.nbytes])

    return run


def _products(
    add_experts: AddExperts,
    streams: Streams,
    slots: Tensor,
    layout: "SlotLayout",
    num_tokens: int,
) -> Callable[[int], object]:
    """Make `_REPEATS` products of a group of experts, each with the same `num_tokens`."""
    num, device = len(slots), slots.device
    places = torch.arange(num_tokens * num, dtype=torch.int32, device=device)
    places = places.view(num, num_tokens).T.contiguous()  # (T, k): pairs are sorted by expert
    pairs = torch.arange(num_tokens * num, dtype=torch.int32, device=device)
    states = LayerStates(
        x=torch.full((num_tokens, layout.hidden), 0.01, dtype=torch.bfloat16, device=device),
        weights=torch.ones((num_tokens, num), device=device),
        pairs=pairs.view(num_tokens, num).T.reshape(-1).contiguous(),
        places=places,
        out=torch.zeros((num_tokens, layout.hidden), device=device),
    )
    rows = tile_rows(num_tokens)
    group = ExpertGroup(
        torch.arange(num, dtype=torch.int32, device=device),
        torch.from_numpy(tiles_of(0, [num_tokens] * num, rows)).to(device),
        0,
        num_tokens * num,
    )

    def run(_: int) -> None:
        for _ in range(_REPEATS):
            add_experts(states, group, slots, layout, rows)
        streams.main.synchronize()

    return run

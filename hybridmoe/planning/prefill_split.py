"""Split of a prefill step's experts between the CPU and the GPU, layer by layer.

Pure: costs in, a split out. Both sides work at once, so a layer takes as long as the slower one.
An expert on the CPU costs its products, and memory time to read it. One streamed to the GPU passes
stages that overlap from one expert to the next: a copy into pinned memory, which costs CPU and
memory time, unless its own memory is registered with the GPU; a copy over the link; dequantization
and products. Resident experts skip the copies.

All experts of a layer have the same size, so the link is best spent on the expert that spares the
CPU most: the one with the most tokens. In that order the GPU takes a prefix and the CPU the rest,
and one pass over the prefixes finds the best. It is slower than the best of all splits by the time
of one expert at most (docs/cuda.md). What the GPU took, it computes longest first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import COPY_TRAFFIC, GpuRates, Rates

__all__ = [
    "MIN_BUFFERS",
    "ExpertCosts",
    "Split",
    "costs_of",
    "cpu_products_s",
    "gpu_finish",
    "group_size",
    "split",
    "stream_buffers",
]

# Dequantized gate and up matrices of a group of experts, which the GPU computes together: few
# launches, and little memory.
_GROUP_BYTES, _MOST_GROUPED = 256 << 20, 16
MIN_BUFFERS, _GROUPS_AHEAD = 4, 3

Seconds = NDArray[np.float64]


class ExpertCosts(NamedTuple):
    """Seconds that a layer's experts keep each resource busy; arrays are by expert."""

    cpu: Seconds  # products on the CPU
    gpu: Seconds  # dequantization and products on the GPU
    read: float  # memory, to compute one on the CPU
    copy: float  # one, into pinned memory
    copy_cpu: float  # CPU time lost to that copy
    copy_read: float  # memory, for that copy
    link: float  # one, to the GPU
    hand_over: float  # activations to the CPU and its result back, if it has any expert


class Split(NamedTuple):
    """Experts of the GPU and the CPU, as indices into the arrays of `ExpertCosts`."""

    gpu: tuple[int, ...]  # in order of computation; `num_resident` first
    cpu: tuple[int, ...]  # ascending
    num_resident: int  # of the GPU's: in VRAM slots
    seconds: float  # predicted

    @property
    def resident(self) -> tuple[int, ...]:
        """The GPU's experts that are in VRAM slots."""
        return self.gpu[: self.num_resident]

    @property
    def streamed(self) -> tuple[int, ...]:
        """The GPU's experts that are streamed to it."""
        return self.gpu[self.num_resident :]


def group_size(hidden: int, inter: int) -> int:
    """Count the experts of a full group."""
    return max(1, min(_MOST_GROUPED, _GROUP_BYTES // (4 * hidden * inter)))


def stream_buffers(hidden: int, inter: int, num_slots: int) -> int:
    """Count the experts in VRAM that are being streamed, where `num_slots` others fit beside four.

    Three groups, so that the link never waits: one is multiplied, two are on their way, also while
    the next layer's attention runs. But no more than four in a hundred slots are given up for it.
    """
    wanted = _GROUPS_AHEAD * group_size(hidden, inter)
    return MIN_BUFFERS + max(0, min(wanted - MIN_BUFFERS, num_slots // 25))


def costs_of(
    parts: Sequence[Part],
    rates: Rates,
    gpu: GpuRates,
    counts: ArrayLike,
    hidden_bytes: float,
    *,
    is_registered: bool = True,
) -> ExpertCosts:
    """Predict the costs of experts made of these parts.

    counts: tokens by expert, above 0. hidden_bytes: of the step's activations, one way.
    is_registered: their memory is, so that nothing is copied into pinned memory.
    """
    tokens = np.asarray(counts, np.float64)
    num_bytes = sum(part.num_bytes for part in parts)
    copy = 0.0 if is_registered else num_bytes / (gpu.copy or rates.dram / COPY_TRAFFIC)
    return ExpertCosts(
        cpu=_cpu_products_s(parts, rates, tokens),
        gpu=_gpu_products_s(parts, gpu, tokens),
        read=num_bytes / rates.dram,
        copy=copy,
        copy_cpu=copy * gpu.copy_cpu,
        copy_read=num_bytes / rates.dram * (1 if is_registered else COPY_TRAFFIC),
        link=num_bytes / gpu.pcie,
        hand_over=2 * hidden_bytes / gpu.pcie,
    )


def split(costs: ExpertCosts, is_resident: Sequence[bool] | NDArray[np.bool_]) -> Split:
    """Find the fastest split that gives the first n experts to the GPU, over all n.

    is_resident: by expert. Resident experts come first; within both groups, experts are ordered by
    CPU time spared per second of the stage that they keep busy longest.
    """
    resident = np.asarray(is_resident, np.bool_)
    spared = costs.cpu - np.where(resident, 0.0, costs.copy_cpu)
    busy = np.where(resident, costs.gpu, np.maximum(costs.gpu, max(costs.copy, costs.link)))
    order = np.lexsort((-spared / busy, ~resident))  # stable: ties by number
    num_resident = int(resident.sum())
    by_cpu = _cpu_finish(costs, order, num_resident)
    best = int(np.maximum(gpu_finish(costs, order, num_resident), by_cpu).argmin())
    # In an order of its own, all on the GPU may still be faster.
    of_both = (_first(n, costs, order, num_resident, by_cpu) for n in (best, len(order)))
    return min(of_both, key=lambda found: found.seconds)


def _first(
    n: int, costs: ExpertCosts, order: NDArray[np.intp], num_resident: int, by_cpu: Seconds
) -> Split:
    """Give the first n experts of `order` to the GPU.

    Of those streamed the longest comes first: behind the last copy as little as possible is left.
    """
    resident, streamed = order[: min(n, num_resident)], order[num_resident:n]
    streamed = streamed[np.argsort(-costs.gpu[streamed], kind="stable")]
    gpu = np.append(resident, streamed)
    return Split(
        gpu=tuple(gpu.tolist()),
        cpu=tuple(sorted(order[n:].tolist())),
        num_resident=len(resident),
        seconds=float(max(gpu_finish(costs, gpu, len(resident))[-1], by_cpu[n])),
    )


def _cpu_finish(costs: ExpertCosts, order: NDArray[np.intp], num_resident: int) -> Seconds:
    """Predict when the CPU has done all but the first n experts of `order`, for n from 0 on.

    Products and memory reads overlap.
    """
    num = len(order)
    left = num - np.arange(num + 1)
    streamed = np.maximum(0, num - left - num_resident)
    products = np.append(costs.cpu[order][::-1].cumsum()[::-1], 0.0)
    cpu = np.maximum(
        products + streamed * costs.copy_cpu, left * costs.read + streamed * costs.copy_read
    )
    cpu[:-1] += costs.hand_over
    return cpu


def gpu_finish(
    costs: ExpertCosts, order: Sequence[int] | NDArray[np.intp], num_resident: int
) -> Seconds:
    """Predict when the GPU has done the first n experts of `order`: (len(order) + 1,), n from 0.

    The first `num_resident` are in VRAM slots. The others are copied into pinned memory, over the
    link behind that, and multiplied once they have arrived. There are buffers enough.
    """
    gpu = costs.gpu[np.asarray(order, np.intp)]
    number = np.maximum(0, np.arange(1, len(gpu) + 1) - num_resident)  # of those streamed
    slower, faster = max(costs.copy, costs.link), min(costs.copy, costs.link)
    arrived = np.where(number > 0, faster + number * slower, 0.0)
    done = gpu.cumsum()
    done += np.maximum.accumulate(np.maximum(arrived - (done - gpu), 0.0))
    return np.append(0.0, done)


def cpu_products_s(parts: Sequence[Part], rates: Rates, num_tokens: float) -> float:
    """Predict CPU seconds of an expert with `num_tokens`; reading and computing overlap."""
    return float(_cpu_products_s(parts, rates, np.array([num_tokens]))[0])


def _cpu_products_s(parts: Sequence[Part], rates: Rates, tokens: Seconds) -> Seconds:
    """As `cpu_products_s`, for many numbers of tokens, most of which occur often."""
    few, place = np.unique(tokens, return_inverse=True)
    seconds = np.zeros(len(few))
    for part in parts:
        multiplying = [rates.multiply_s(part, n) for n in few.tolist()]
        seconds += np.maximum(rates.token_s(part), multiplying)
    return seconds[place]


def _gpu_products_s(parts: Sequence[Part], gpu: GpuRates, tokens: Seconds) -> Seconds:
    """Predict GPU seconds of resident experts: dequantized to bf16, then multiplied."""
    seconds = np.full(len(tokens), gpu.expert_s, np.float64)
    for part in parts:
        dequantized_bytes = 2 * part.num_params
        seconds += (part.num_bytes + dequantized_bytes) / gpu.read
        seconds += np.maximum(dequantized_bytes / gpu.read, 2 * part.num_params * tokens / gpu.ops)
    return seconds

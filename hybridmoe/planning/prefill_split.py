"""Split of a prefill step's experts between the CPU and the GPU, layer by layer.

Pure: costs in, a split out. Both sides work at once, so a layer takes as long as the slower one.
An expert on the CPU costs its products, and memory time to read it. One streamed to the GPU passes
three stages that overlap from one expert to the next: a copy into pinned memory, which costs CPU
and memory time; a copy over the link; dequantization and products. Resident experts skip the
copies.

All experts of a layer have the same size, so the link is best spent on the expert that spares the
CPU most: the one with the most tokens. In that order the GPU takes a prefix and the CPU the rest,
and one pass over the prefixes finds the best. It is slower than the best of all splits by the time
of one expert at most (docs/cuda.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import COPY_TRAFFIC, GpuRates, Rates

__all__ = [
    "STREAM_BUFFERS",
    "ExpertCosts",
    "Split",
    "costs_of",
    "cpu_products_s",
    "gpu_finish",
    "split",
]

STREAM_BUFFERS = 2  # pinned and on the GPU: one is filled while the other is used

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


def costs_of(
    parts: Sequence[Part], rates: Rates, gpu: GpuRates, counts: ArrayLike, hidden_bytes: float
) -> ExpertCosts:
    """Predict the costs of experts made of these parts.

    counts: tokens by expert, above 0. hidden_bytes: of the step's activations, one way.
    """
    few, place = np.unique(np.asarray(counts, np.float64), return_inverse=True)
    num_bytes = sum(part.num_bytes for part in parts)
    copy = gpu.copy if gpu.copy is not None else rates.dram / COPY_TRAFFIC
    cpu = np.array([cpu_products_s(parts, rates, tokens) for tokens in few])
    on_gpu = np.array([_gpu_products_s(parts, gpu, tokens) for tokens in few])
    return ExpertCosts(
        cpu=cpu[place],
        gpu=on_gpu[place],
        read=num_bytes / rates.dram,
        copy=num_bytes / copy,
        copy_cpu=num_bytes / copy * gpu.copy_cpu,
        copy_read=num_bytes / rates.dram * COPY_TRAFFIC,
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
    by_gpu = gpu_finish(costs, order, num_resident)
    both = np.maximum(by_gpu, _cpu_finish(costs, order, num_resident))
    best = int(both.argmin())
    return Split(
        gpu=tuple(order[:best].tolist()),
        cpu=tuple(sorted(order[best:].tolist())),
        num_resident=min(best, num_resident),
        seconds=float(both[best]),
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

    The first `num_resident` are in VRAM slots. The others are copied into pinned memory once a
    buffer is free, over the link once a device buffer is, and multiplied once they have arrived.
    """
    gpu = costs.gpu
    done = [0.0]
    staged = 0.0
    linked = [0.0] * STREAM_BUFFERS  # when the last experts arrived
    freed = [0.0] * STREAM_BUFFERS  # when device buffers were free again
    for n, expert in enumerate(order):
        if n < num_resident:
            done.append(done[-1] + gpu[expert])
            continue
        staged = max(staged, linked[0]) + costs.copy
        linked = [*linked[1:], max(staged, linked[-1], freed[0]) + costs.link]
        done.append(max(linked[-1], done[-1]) + gpu[expert])
        freed = [*freed[1:], done[-1]]
    return np.array(done)


def cpu_products_s(parts: Sequence[Part], rates: Rates, num_tokens: float) -> float:
    """Predict CPU seconds of an expert with `num_tokens`; reading and computing overlap."""
    return sum(
        max(
            part.num_bytes / rates.decode_bytes(part.type),
            rates.multiply_s(part.type, part.num_params, num_tokens),
        )
        for part in parts
    )


def _gpu_products_s(parts: Sequence[Part], gpu: GpuRates, num_tokens: float) -> float:
    """Predict GPU seconds of a resident expert: dequantized to bf16, then multiplied."""
    seconds = gpu.expert_s
    for part in parts:
        dequantized_bytes = 2 * part.num_params
        seconds += (part.num_bytes + dequantized_bytes) / gpu.read
        seconds += max(dequantized_bytes / gpu.read, 2 * part.num_params * num_tokens / gpu.ops)
    return seconds

"""Which of a prompt step's experts the CPU computes, and which are streamed to the card.

Pure: costs in, a split out. Both sides work at once, so a layer takes as long as the slower one.
An expert on the CPU costs its products, and memory's time to read it. One on the card passes three
stages that overlap from one expert to the next: copied into page-locked memory, copied over the
link, decoded and multiplied; the first copy takes some of the CPU's time and more of memory's. What
is in the card's slots already skips the copies.

All experts of a layer have the same size, so a place on the link is best given to the expert that
spares the CPU most: the one with most tokens. In that order the card takes a prefix and the CPU the
rest, and one pass over the prefixes finds the best. The best of all splits is faster by the time of
one expert at most (docs/cuda.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import COPY_TRAFFIC, GpuRates, Rates

__all__ = [
    "PLACES",
    "ExpertCosts",
    "Split",
    "costs_of",
    "cpu_products_s",
    "gpu_finish",
    "split",
]

PLACES = 2  # staging buffers, and places on the card: one is filled while the other is used

Seconds = NDArray[np.float64]


class ExpertCosts(NamedTuple):
    """Seconds of a layer's experts by what is busy; arrays have one number for each expert."""

    cpu: Seconds  # the CPU's products
    card: Seconds  # the card's decoding and products
    read: float  # memory's time, for any one on the CPU
    copy: float  # any one, into page-locked memory
    copy_cpu: float  # of the CPU's own work, lost to that copy
    copy_read: float  # memory's time, for that copy
    link: float  # any one, to the card
    hand_over: float  # activations to the CPU and its result back, if it has any expert


class Split(NamedTuple):
    """Who computes which experts: numbers into the arrays of `ExpertCosts`."""

    card: tuple[int, ...]  # in the order in which the card takes them; `num_held` first
    cpu: tuple[int, ...]  # ascending
    num_held: int  # of the card's: in its slots already
    seconds: float  # as predicted

    @property
    def held(self) -> tuple[int, ...]:
        """The card's experts that it has in its slots."""
        return self.card[: self.num_held]

    @property
    def streamed(self) -> tuple[int, ...]:
        """The card's experts that have to be copied there."""
        return self.card[self.num_held :]


def costs_of(
    parts: Sequence[Part], rates: Rates, gpu: GpuRates, counts: ArrayLike, hidden_bytes: float
) -> ExpertCosts:
    """Costs of experts of these parts with so many tokens each.

    counts: tokens of each expert, above 0. hidden_bytes: of the step's activations, one way.
    """
    few, place = np.unique(np.asarray(counts, np.float64), return_inverse=True)
    num_bytes = sum(part.num_bytes for part in parts)
    copy = gpu.copy if gpu.copy is not None else rates.dram / COPY_TRAFFIC
    cpu = np.array([cpu_products_s(parts, rates, tokens) for tokens in few])
    card = np.array([_card_products_s(parts, gpu, tokens) for tokens in few])
    return ExpertCosts(
        cpu=cpu[place],
        card=card[place],
        read=num_bytes / rates.dram,
        copy=num_bytes / copy,
        copy_cpu=num_bytes / copy * gpu.copy_cpu,
        copy_read=num_bytes / rates.dram * COPY_TRAFFIC,
        link=num_bytes / gpu.pcie,
        hand_over=2 * hidden_bytes / gpu.pcie,
    )


def split(costs: ExpertCosts, is_held: Sequence[bool] | NDArray[np.bool_]) -> Split:
    """The fastest of: the first n experts of the card's order to the card, the others to the CPU.

    is_held: of each expert, whether the card has it. These come first; in either part, those come
    first that spare the CPU most for each second of the stage that they keep busy longest.
    """
    held = np.asarray(is_held, np.bool_)
    spared = costs.cpu - np.where(held, 0.0, costs.copy_cpu)
    busy = np.where(held, costs.card, np.maximum(costs.card, max(costs.copy, costs.link)))
    order = np.lexsort((-spared / busy, ~held))  # stable: ties by number
    num_held = int(held.sum())
    on_card = gpu_finish(costs, order, num_held)
    both = np.maximum(on_card, _cpu_finish(costs, order, num_held))
    best = int(both.argmin())
    return Split(
        card=tuple(order[:best].tolist()),
        cpu=tuple(sorted(order[best:].tolist())),
        num_held=min(best, num_held),
        seconds=float(both[best]),
    )


def _cpu_finish(costs: ExpertCosts, order: NDArray[np.intp], num_held: int) -> Seconds:
    """When the CPU has done all but the first n experts of `order`, for n from 0 on.

    Its products and its memory work at once, as long as each has to.
    """
    num = len(order)
    left = num - np.arange(num + 1)
    streamed = np.maximum(0, num - left - num_held)
    products = np.append(costs.cpu[order][::-1].cumsum()[::-1], 0.0)
    cpu = np.maximum(
        products + streamed * costs.copy_cpu, left * costs.read + streamed * costs.copy_read
    )
    cpu[:-1] += costs.hand_over
    return cpu


def gpu_finish(
    costs: ExpertCosts, order: Sequence[int] | NDArray[np.intp], num_held: int
) -> Seconds:
    """When the card has done the first n experts of `order`, for n from 0 on: (len(order) + 1,).

    The first `num_held` are in its slots; of the others, one is copied into page-locked memory when
    a buffer is free, over the link when a place is, and multiplied when it is there.
    """
    card = costs.card
    done = [0.0]
    staged = 0.0
    linked = [0.0] * PLACES  # of the last experts
    freed = [0.0] * PLACES  # when the places on the card were free again
    for n, expert in enumerate(order):
        if n < num_held:
            done.append(done[-1] + card[expert])
            continue
        staged = max(staged, linked[0]) + costs.copy
        linked = [*linked[1:], max(staged, linked[-1], freed[0]) + costs.link]
        done.append(max(linked[-1], done[-1]) + card[expert])
        freed = [*freed[1:], done[-1]]
    return np.array(done)


def cpu_products_s(parts: Sequence[Part], rates: Rates, num_tokens: float) -> float:
    """Seconds of the CPU for an expert with so many tokens; reading and computing overlap."""
    return sum(
        max(
            part.num_bytes / rates.decode_bytes(part.type),
            rates.multiply_s(part.type, part.num_params, num_tokens),
        )
        for part in parts
    )


def _card_products_s(parts: Sequence[Part], gpu: GpuRates, num_tokens: float) -> float:
    """Seconds of the card for an expert in one of its slots: decoded to bf16, then multiplied."""
    seconds = gpu.expert_s
    for part in parts:
        decoded_bytes = 2 * part.num_params
        seconds += (part.num_bytes + decoded_bytes) / gpu.read
        seconds += max(decoded_bytes / gpu.read, 2 * part.num_params * num_tokens / gpu.ops)
    return seconds

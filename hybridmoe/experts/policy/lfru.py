"""LFRU: uses while resident, divided by the time since the last one; the lowest leaves."""

from typing import Any

from hybridmoe.experts.policy.heap import RESIDENT, SCORE, add, drop
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    CLOCK,
    USED,
    State,
    access_kernel,
    compiled,
    demand,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Lfru"]

USES, LAST = SCORE, 1  # rows of State.score


@compiled
def touch(s: State, key: int) -> None:
    s.score[USES, key] += 1
    s.score[LAST, key] = s.sizes[CLOCK]


@compiled
def evict(s: State, key: int) -> int:
    victim, lowest = -1, 0.0
    for place in range(s.sizes[USED]):
        other = s.node[place, RESIDENT]
        if is_pinned(s, other):
            continue
        value = s.score[USES, other] / (s.sizes[CLOCK] - s.score[LAST, other])
        if victim < 0 or value < lowest:
            victim, lowest = other, value
    drop(s, victim)
    return int(victim)


@compiled
def insert(s: State, key: int) -> None:
    s.score[USES, key] = 1
    s.score[LAST, key] = s.sizes[CLOCK]
    add(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Lfru(KernelPolicy):
    """Frequency and recency in one ratio. A victim costs a look at every resident."""

    name = "lfru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """An array of residents."""
        return new_state(shape, num_columns=6, num_scores=2)

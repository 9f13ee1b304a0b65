"""Segmented LRU: newcomers on probation, keys used again protected from them.

Karedla, Love and Wherry 1994; 80 % of the slots are protected.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    OWN,
    WHERE,
    State,
    access_kernel,
    demand,
    inline,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import (
    head,
    move_to_front,
    oldest_unpinned,
    promote,
    push_front,
    unlink,
)

__all__ = ["SegmentedLru"]

PROBATION, PROTECTED = 1, 2  # the lists, and their heads plus one
MOST_PROTECTED, NUM_PROTECTED = OWN, OWN + 1  # entries of State.sizes


@inline
def touch(s: State, key: int) -> None:
    if s.node[key, WHERE] == PROTECTED:
        move_to_front(s, head(s, 1), key)
        return
    promote(s, key, PROBATION, PROTECTED, NUM_PROTECTED, MOST_PROTECTED)


@inline
def evict(s: State, key: int) -> int:
    victim = oldest_unpinned(s, head(s, 0))
    if victim < 0:
        victim = oldest_unpinned(s, head(s, 1))
        s.sizes[NUM_PROTECTED] -= 1
    unlink(s, victim)
    return victim


@inline
def insert(s: State, key: int) -> None:
    push_front(s, head(s, 0), key, PROBATION)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class SegmentedLru(KernelPolicy):
    """Segmented LRU: an expert used once cannot evict one used twice."""

    name = "slru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make two lists."""
        state = new_state(shape, num_heads=2)
        state.sizes[MOST_PROTECTED] = shape.num_slots * 4 // 5
        return state

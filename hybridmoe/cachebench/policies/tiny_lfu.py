"""W-TinyLFU: a small LRU window, then a segmented LRU with admission by frequency.

Einziger, Friedman and Manes 2017: 1 % of the slots for the window, 80 % of the rest protected,
counts halved after ten uses per slot. Counts are exact, not sketched: keys are few.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    EXPERTS,
    OWN,
    SLOTS,
    WHERE,
    State,
    access_kernel,
    demand,
    inline,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import (
    back,
    head,
    move_to_front,
    oldest_unpinned,
    promote,
    push_front,
    unlink,
)

__all__ = ["TinyLfu"]

WINDOW, PROBATION, PROTECTED = 1, 2, 3  # the lists, and their heads plus one
NUM_WINDOW, MOST_WINDOW, NUM_PROTECTED, MOST_PROTECTED, NUM_COUNTED = range(OWN, OWN + 5)
COUNT = 0  # row of State.score


@inline
def count_uses(s: State, layer: int, experts: Any) -> None:
    for i in range(len(experts)):
        s.score[COUNT, layer * s.sizes[EXPERTS] + experts[i]] += 1
    s.sizes[NUM_COUNTED] += len(experts)
    if s.sizes[NUM_COUNTED] >= 10 * s.sizes[SLOTS]:
        s.sizes[NUM_COUNTED] //= 2
        for key in range(s.score.shape[1]):
            s.score[COUNT, key] //= 2


@inline
def touch(s: State, key: int) -> None:
    where = s.node[key, WHERE]
    if where != PROBATION:
        move_to_front(s, head(s, where - 1), key)
        return
    promote(s, key, PROBATION, PROTECTED, NUM_PROTECTED, MOST_PROTECTED)


@inline
def evict(s: State, key: int) -> int:
    leaving = oldest_unpinned(s, head(s, 0))
    victim = oldest_unpinned(s, head(s, 1))
    if victim < 0:
        victim = oldest_unpinned(s, head(s, 2))
    if victim < 0 or (leaving >= 0 and s.score[COUNT, leaving] <= s.score[COUNT, victim]):
        victim = leaving
    where = s.node[victim, WHERE]
    unlink(s, victim)
    if where == WINDOW:
        s.sizes[NUM_WINDOW] -= 1
    elif where == PROTECTED:
        s.sizes[NUM_PROTECTED] -= 1
    return victim


@inline
def insert(s: State, key: int) -> None:
    push_front(s, head(s, 0), key, WINDOW)
    s.sizes[NUM_WINDOW] += 1
    if s.sizes[NUM_WINDOW] > s.sizes[MOST_WINDOW]:
        leaving = back(s, head(s, 0))
        unlink(s, leaving)
        push_front(s, head(s, 1), leaving, PROBATION)
        s.sizes[NUM_WINDOW] -= 1


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    count_uses(s, layer, experts)
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class TinyLfu(KernelPolicy):
    """W-TinyLFU: a key that leaves the window must be more frequent than its victim."""

    name = "w-tinylfu"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make three lists and a count for each key."""
        state = new_state(shape, num_heads=3, num_scores=1)
        num_window = max(1, shape.num_slots // 100)
        state.sizes[MOST_WINDOW] = num_window
        state.sizes[MOST_PROTECTED] = max(0, shape.num_slots - num_window) * 4 // 5
        return state

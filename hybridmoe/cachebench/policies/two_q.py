"""2Q: newcomers in a short FIFO; keys requested again after leaving it enter an LRU list.

Johnson and Shasha, VLDB 1994, the full version: a quarter of the slots for the FIFO, and half as
many ghosts as slots.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    GHOST,
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
    back,
    head,
    move_to_front,
    oldest_unpinned,
    push_front,
    unlink,
)

__all__ = ["TwoQ"]

NEW, LRU = 1, 2  # the resident lists; heads 0 and 1, and 2 for the ghosts
MOST_NEW, NUM_NEW, MOST_GHOSTS, NUM_GHOSTS = OWN, OWN + 1, OWN + 2, OWN + 3


@inline
def touch(s: State, key: int) -> None:
    if s.node[key, WHERE] == LRU:
        move_to_front(s, head(s, 1), key)


@inline
def evict(s: State, key: int) -> int:
    victim = -1
    if s.sizes[NUM_NEW] > s.sizes[MOST_NEW]:
        victim = oldest_unpinned(s, head(s, 0))
    if victim < 0:
        victim = oldest_unpinned(s, head(s, 1))
    if victim < 0:
        victim = oldest_unpinned(s, head(s, 0))
    was_new = s.node[victim, WHERE] == NEW
    unlink(s, victim)
    if was_new:
        s.sizes[NUM_NEW] -= 1
        push_front(s, head(s, 2), victim, GHOST)
        s.sizes[NUM_GHOSTS] += 1
        if s.sizes[NUM_GHOSTS] > s.sizes[MOST_GHOSTS]:
            unlink(s, back(s, head(s, 2)))
            s.sizes[NUM_GHOSTS] -= 1
    return victim


@inline
def insert(s: State, key: int) -> None:
    if s.node[key, WHERE] == GHOST:
        unlink(s, key)
        s.sizes[NUM_GHOSTS] -= 1
        push_front(s, head(s, 1), key, LRU)
    else:
        push_front(s, head(s, 0), key, NEW)
        s.sizes[NUM_NEW] += 1


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class TwoQ(KernelPolicy):
    """2Q: keeps keys that return after a while, not those used twice in a row."""

    name = "2q"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make three lists."""
        state = new_state(shape, num_heads=3)
        state.sizes[MOST_NEW] = max(1, shape.num_slots // 4)
        state.sizes[MOST_GHOSTS] = max(1, shape.num_slots // 2)
        return state

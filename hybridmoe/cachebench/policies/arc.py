"""ARC: an LRU list of keys used once and one of keys used again, with adaptive shares.

Megiddo and Modha, FAST 2003: a hit on a ghost of either list lets that list grow. Quotients of
lengths are rounded down, so that a length can equal its target, a case that they treat apart.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    GHOST,
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
from hybridmoe.experts.policy.lists import back, head, oldest_unpinned, push_front, unlink

__all__ = ["Arc"]

# The lists: used once, used again, and the ghosts of both; their heads are 0 to 3.
ONCE, AGAIN, ONCE_GHOST, AGAIN_GHOST = 1, 2, GHOST, GHOST + 1
RETURNED = GHOST + 2  # was a ghost before this access
NUM = OWN  # entries of State.sizes: lengths of the four lists
TARGET = OWN + 4  # of the first list's length


@inline
def touch(s: State, key: int) -> None:
    s.sizes[NUM + s.node[key, WHERE] - 1] -= 1
    unlink(s, key)
    push_front(s, head(s, 1), key, AGAIN)
    s.sizes[NUM + 1] += 1


@inline
def forget_oldest(s: State, index: int) -> None:
    if s.sizes[NUM + index] > 0:
        unlink(s, back(s, head(s, index)))
        s.sizes[NUM + index] -= 1


@inline
def replace(s: State, from_once: bool, keep_ghost: bool) -> int:
    index = 0 if from_once else 1
    victim = oldest_unpinned(s, head(s, index))
    if victim < 0:
        index = 1 - index
        victim = oldest_unpinned(s, head(s, index))
    unlink(s, victim)
    s.sizes[NUM + index] -= 1
    if keep_ghost:
        push_front(s, head(s, 2 + index), victim, GHOST + index)
        s.sizes[NUM + 2 + index] += 1
    return victim


@inline
def evict(s: State, key: int) -> int:
    slots, where = s.sizes[SLOTS], s.node[key, WHERE]
    num_once, num_ghosts = s.sizes[NUM], s.sizes[NUM + 2]
    if where == ONCE_GHOST:
        step = max(1, s.sizes[NUM + 3] // s.sizes[NUM + 2])
        s.sizes[TARGET] = min(slots, s.sizes[TARGET] + step)
    elif where == AGAIN_GHOST:
        step = max(1, s.sizes[NUM + 2] // s.sizes[NUM + 3])
        s.sizes[TARGET] = max(0, s.sizes[TARGET] - step)
    elif num_once + num_ghosts >= slots:
        if num_once >= slots:
            return replace(s, True, False)
        forget_oldest(s, 2)
    elif num_once + num_ghosts + s.sizes[NUM + 1] + s.sizes[NUM + 3] >= 2 * slots:
        forget_oldest(s, 3)
    if where >= GHOST:
        unlink(s, key)
        s.sizes[NUM + where - 2] -= 1
        s.node[key, WHERE] = RETURNED
    at_target = where == AGAIN_GHOST and num_once == s.sizes[TARGET]
    return replace(s, num_once > 0 and (num_once > s.sizes[TARGET] or at_target), True)


@inline
def insert(s: State, key: int) -> None:
    index = 1 if s.node[key, WHERE] == RETURNED else 0
    push_front(s, head(s, index), key, index + 1)
    s.sizes[NUM + index] += 1


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Arc(KernelPolicy):
    """ARC: balances recency and frequency by the evictions it regrets."""

    name = "arc"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make four lists."""
        return new_state(shape, num_heads=4)

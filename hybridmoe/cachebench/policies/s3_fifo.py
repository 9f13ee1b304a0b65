"""S3-FIFO: a small FIFO as a filter, a main FIFO with reinsertion, and a FIFO of ghosts.

Yang et al., SOSP 2023, as in its authors' simulator (libCacheSim's S3FIFO): 10 % of the slots in
the small one, 0.9 ghosts per slot, two uses to get from small to main; until the first eviction,
keys that do not fit into the small one start in the main one.
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
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import back, head, move_to_front, push_front, unlink

__all__ = ["S3Fifo"]

SMALL, MAIN = 1, 2  # the resident lists; heads 0 and 1, and 2 for the ghosts
RETURNED = GHOST + 1  # was a ghost before this access
NUM_SMALL, NUM_MAIN, NUM_GHOSTS, MOST_SMALL, MOST_MAIN, MOST_GHOSTS, HAS_EVICTED = range(
    OWN, OWN + 7
)
USES = 4  # column of State.node


@inline
def touch(s: State, key: int) -> None:
    s.node[key, USES] += 1


@inline
def evict_small(s: State) -> int:
    """Evict from the small list; -1 if all of its keys moved to the main list or are pinned."""
    num_left = s.sizes[NUM_SMALL]
    while num_left > 0:
        num_left -= 1
        key = back(s, head(s, 0))
        if s.node[key, USES] >= 2:
            unlink(s, key)
            push_front(s, head(s, 1), key, MAIN)
            s.node[key, USES] = 0
            s.sizes[NUM_SMALL] -= 1
            s.sizes[NUM_MAIN] += 1
        elif is_pinned(s, key):
            move_to_front(s, head(s, 0), key)
        else:
            unlink(s, key)
            s.sizes[NUM_SMALL] -= 1
            if s.sizes[MOST_GHOSTS] > 0:
                if s.sizes[NUM_GHOSTS] == s.sizes[MOST_GHOSTS]:
                    unlink(s, back(s, head(s, 2)))
                    s.sizes[NUM_GHOSTS] -= 1
                push_front(s, head(s, 2), key, GHOST)
                s.sizes[NUM_GHOSTS] += 1
            return key
    return -1


@inline
def evict_main(s: State) -> int:
    """Evict from the main list; -1 if a whole round finds no victim."""
    num_left = 4 * s.sizes[NUM_MAIN]  # uses save a key for up to three rounds
    while num_left > 0:
        num_left -= 1
        key = back(s, head(s, 1))
        if s.node[key, USES] == 0 and not is_pinned(s, key):
            unlink(s, key)
            s.sizes[NUM_MAIN] -= 1
            return key
        s.node[key, USES] = max(0, min(s.node[key, USES], 3) - 1)
        move_to_front(s, head(s, 1), key)
    return -1


@inline
def evict(s: State, key: int) -> int:
    s.sizes[HAS_EVICTED] = 1
    if s.node[key, WHERE] == GHOST:
        unlink(s, key)
        s.node[key, WHERE] = RETURNED
        s.sizes[NUM_GHOSTS] -= 1
    victim = -1
    from_main = s.sizes[NUM_MAIN] > s.sizes[MOST_MAIN] or s.sizes[NUM_SMALL] == 0
    while victim < 0:
        victim = evict_main(s) if from_main else evict_small(s)
        if victim < 0:
            from_main = not from_main
    return victim


@inline
def insert(s: State, key: int) -> None:
    s.node[key, USES] = 0
    is_early = not s.sizes[HAS_EVICTED] and s.sizes[NUM_SMALL] >= s.sizes[MOST_SMALL]
    if s.node[key, WHERE] == RETURNED or is_early:
        push_front(s, head(s, 1), key, MAIN)
        s.sizes[NUM_MAIN] += 1
    else:
        if s.node[key, WHERE] == GHOST:  # no eviction was needed
            unlink(s, key)
            s.sizes[NUM_GHOSTS] -= 1
        push_front(s, head(s, 0), key, SMALL)
        s.sizes[NUM_SMALL] += 1


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class S3Fifo(KernelPolicy):
    """S3-FIFO: evicts one-hit wonders early; routing has few."""

    name = "s3-fifo"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make three lists."""
        state = new_state(shape, num_heads=3, num_columns=5)
        num_small = max(1, int(shape.num_slots * 0.1))
        state.sizes[MOST_SMALL] = num_small
        state.sizes[MOST_MAIN] = shape.num_slots - num_small
        state.sizes[MOST_GHOSTS] = int(shape.num_slots * 0.9)
        return state

"""LFRU: evicts the lowest ratio of uses while resident to time since the last use.

Residents are in one list for each number of uses, the oldest last: only the oldest can have the
lowest ratio of its list. Lists are grouped by uses, four groups per doubling; a lower bound of a
group's ratios is known without visiting its lists. Of equal ratios the key with fewer uses leaves,
then the one used earlier.
"""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    CLOCK,
    OWN,
    State,
    access_kernel,
    demand,
    inline,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import back, head, push_front, unlink

__all__ = ["Lfru"]

USES, LAST = 0, 1  # rows of State.score
# Groups: rows of State.layer. EARLIEST: lower bound of the residents' last uses.
LEAST, EARLIEST = 0, 1
NUM_GROUPS = 96  # the last one is unbounded
# The first heads stand for groups, the others are lists; those in use are chained by uses.
BEHIND, BEFORE = 4, 5  # columns of State.node, of heads
LIST = 4  # of keys: the head of their list
FREE, NUM_IN_USE = OWN, OWN + 1  # first free head (BEHIND links them); groups that had a list


@inline
def list_behind(s: State, before: int, uses: float) -> int:
    """Find the list of keys with `uses` uses behind `before`, or make it."""
    group = s.node[before, BEHIND] - head(s, 0)
    if 0 < group < NUM_GROUPS and s.layer[LEAST, group] == uses:
        before = s.node[before, BEHIND]
        s.sizes[NUM_IN_USE] = max(s.sizes[NUM_IN_USE], group + 1)
    behind = s.node[before, BEHIND]
    if behind >= head(s, NUM_GROUPS) and s.score[USES, back(s, behind)] == uses:
        return int(behind)
    made = s.sizes[FREE]
    s.sizes[FREE] = s.node[made, BEHIND]
    s.node[made, BEFORE] = before
    s.node[made, BEHIND] = behind
    s.node[before, BEHIND] = made
    s.node[behind, BEFORE] = made
    return int(made)


@inline
def enter(s: State, key: int, into: int, uses: float) -> None:
    push_front(s, into, key, 1)
    s.node[key, LIST] = into
    s.score[USES, key] = uses
    s.score[LAST, key] = s.sizes[CLOCK]


@inline
def leave(s: State, key: int) -> None:
    unlink(s, key)
    left = s.node[key, LIST]
    if back(s, left) == left:
        s.node[s.node[left, BEFORE], BEHIND] = s.node[left, BEHIND]
        s.node[s.node[left, BEHIND], BEFORE] = s.node[left, BEFORE]
        s.node[left, BEHIND] = s.sizes[FREE]
        s.sizes[FREE] = left


@inline
def touch(s: State, key: int) -> None:
    uses = s.score[USES, key] + 1
    into = list_behind(s, s.node[key, LIST], uses)  # while the neighbour surely exists
    leave(s, key)
    enter(s, key, into, uses)


@inline
def evict(s: State, key: int) -> int:
    victim, lowest, now = -1, 0.0, s.sizes[CLOCK]
    for group in range(s.sizes[NUM_IN_USE]):
        oldest_age = now - s.layer[EARLIEST, group]
        if oldest_age == 0 or (victim >= 0 and s.layer[LEAST, group] / oldest_age >= lowest):
            continue
        earliest = now
        candidates = s.node[head(s, group), BEHIND]
        while candidates >= head(s, NUM_GROUPS):
            oldest = back(s, candidates)
            earliest = min(earliest, np.int64(s.score[LAST, oldest]))
            if not is_pinned(s, oldest):
                value = s.score[USES, oldest] / (now - s.score[LAST, oldest])
                if victim < 0 or value < lowest:
                    victim, lowest = oldest, value
            candidates = s.node[candidates, BEHIND]
        s.layer[EARLIEST, group] = earliest
    leave(s, victim)
    return int(victim)


@inline
def insert(s: State, key: int) -> None:
    enter(s, key, list_behind(s, head(s, 0), 1.0), 1.0)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Lfru(KernelPolicy):
    """LFRU: frequency over recency. Finding a victim visits some of the lists."""

    name = "lfru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make a list for each number of uses that residents can have at once, and a spare one."""
        num_lists = min(shape.num_slots, shape.num_keys) + 1
        state = new_state(
            shape, num_heads=NUM_GROUPS + num_lists + 1, num_columns=6, num_scores=2
        )._replace(layer=np.zeros((2, NUM_GROUPS), np.int64))
        state.layer[LEAST, :3] = 1, 2, 3
        state.layer[LEAST, 3:] = [(4 + i % 4) << i // 4 for i in range(NUM_GROUPS - 3)]
        groups = shape.num_keys + np.arange(NUM_GROUPS)
        state.node[groups, BEHIND] = np.roll(groups, -1)
        state.node[groups, BEFORE] = np.roll(groups, 1)
        lists = groups[-1] + 1 + np.arange(num_lists)
        state.node[lists, BEHIND] = lists + 1
        state.sizes[FREE], state.sizes[NUM_IN_USE] = lists[0], 1
        return state

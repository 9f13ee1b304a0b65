"""LIRS: keeps keys with a short distance between their last two uses.

Jiang and Zhang, SIGMETRICS 2002: 1 % of the slots for keys that have shown no short distance yet.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    ABSENT,
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
from hybridmoe.experts.policy.lists import back, head, push_front, unlink

__all__ = ["Lirs"]

LOW, HIGH = 1, 2  # residents with a short and a long distance; GHOST: only in the stack
QUEUE_PREV, QUEUE_NEXT, IN_STACK = 4, 5, 6  # columns of State.node; head 0 stack, head 1 queue
NUM_LOW, MOST_LOW = OWN, OWN + 1


@inline
def enqueue(s: State, key: int) -> None:
    """Make a key the newest of the queue of HIGH residents."""
    front = s.node[head(s, 1), QUEUE_NEXT]
    s.node[key, QUEUE_PREV] = head(s, 1)
    s.node[key, QUEUE_NEXT] = front
    s.node[front, QUEUE_PREV] = key
    s.node[head(s, 1), QUEUE_NEXT] = key
    s.node[key, WHERE] = HIGH


@inline
def dequeue(s: State, key: int) -> None:
    before, behind = s.node[key, QUEUE_PREV], s.node[key, QUEUE_NEXT]
    s.node[before, QUEUE_NEXT] = behind
    s.node[behind, QUEUE_PREV] = before


@inline
def to_top(s: State, key: int) -> None:
    """Make a key the newest of the stack, and keep its state."""
    where = s.node[key, WHERE]
    if s.node[key, IN_STACK]:
        unlink(s, key)
    push_front(s, head(s, 0), key, where)
    s.node[key, IN_STACK] = 1


@inline
def off_stack(s: State, key: int) -> None:
    where = s.node[key, WHERE]
    unlink(s, key)
    s.node[key, IN_STACK] = 0
    s.node[key, WHERE] = ABSENT if where == GHOST else where


@inline
def prune(s: State) -> None:
    """Trim the stack until its oldest key is a LOW resident."""
    key = back(s, head(s, 0))
    while key != head(s, 0) and s.node[key, WHERE] != LOW:
        off_stack(s, key)
        key = back(s, head(s, 0))


@inline
def make_low(s: State, key: int) -> None:
    """Make the stack's newest key LOW; with too many of these, the oldest becomes HIGH."""
    s.node[key, WHERE] = LOW
    s.sizes[NUM_LOW] += 1
    prune(s)
    if s.sizes[NUM_LOW] > s.sizes[MOST_LOW]:
        oldest = back(s, head(s, 0))
        off_stack(s, oldest)
        enqueue(s, oldest)
        s.sizes[NUM_LOW] -= 1
        prune(s)


@inline
def touch(s: State, key: int) -> None:
    if s.node[key, WHERE] == LOW:
        to_top(s, key)
        prune(s)
        return
    dequeue(s, key)
    was_in_stack = s.node[key, IN_STACK]
    to_top(s, key)
    if was_in_stack:
        make_low(s, key)
    else:
        enqueue(s, key)


@inline
def evict(s: State, key: int) -> int:
    victim = s.node[head(s, 1), QUEUE_PREV]
    while victim != head(s, 1) and is_pinned(s, victim):
        victim = s.node[victim, QUEUE_PREV]
    if victim == head(s, 1):
        return -1
    dequeue(s, victim)
    s.node[victim, WHERE] = GHOST if s.node[victim, IN_STACK] else ABSENT
    return int(victim)


@inline
def insert(s: State, key: int) -> None:
    was_in_stack = s.node[key, IN_STACK]
    to_top(s, key)
    if was_in_stack or s.sizes[NUM_LOW] < s.sizes[MOST_LOW]:
        make_low(s, key)
    else:
        enqueue(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Lirs(KernelPolicy):
    """LIRS: few slots for newcomers; streams a miss if all of these are pinned."""

    name = "lirs"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make a stack, and a queue with links of its own."""
        state = new_state(shape, num_heads=2, num_columns=7)
        state.sizes[MOST_LOW] = shape.num_slots - max(1, shape.num_slots // 100)
        return state

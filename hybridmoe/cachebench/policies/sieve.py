"""SIEVE: FIFO with a hand that skips used keys and leaves them in place.

Zhang et al., NSDI 2024. Made for skewed popularity without scans.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    OWN,
    PREV,
    State,
    access_kernel,
    demand,
    inline,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import head, push_front, unlink

__all__ = ["Sieve"]

IS_USED = 4  # column of State.node
HAND = OWN  # entry of State.sizes: the next candidate; the list's head = start at the oldest


@inline
def touch(s: State, key: int) -> None:
    s.node[key, IS_USED] = 1


@inline
def evict(s: State, key: int) -> int:
    hand = s.sizes[HAND]
    while True:
        if hand == head(s, 0):
            hand = s.node[hand, PREV]
        if not s.node[hand, IS_USED] and not is_pinned(s, hand):
            break
        if not is_pinned(s, hand):
            s.node[hand, IS_USED] = 0
        hand = s.node[hand, PREV]
    s.sizes[HAND] = s.node[hand, PREV]
    unlink(s, hand)
    return int(hand)


@inline
def insert(s: State, key: int) -> None:
    s.node[key, IS_USED] = 0
    push_front(s, head(s, 0), key, 1)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Sieve(KernelPolicy):
    """SIEVE: lazy promotion, quick demotion."""

    name = "sieve"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list, a used bit for each key, and the hand at its end."""
        state = new_state(shape, num_columns=5)
        state.sizes[HAND] = shape.num_keys
        return state

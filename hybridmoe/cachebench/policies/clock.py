"""CLOCK (second chance): FIFO, but keys used since they came go round once more."""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    State,
    access_kernel,
    demand,
    inline,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import back, head, move_to_front, push_front, unlink

__all__ = ["Clock"]

IS_USED = 4  # column of State.node


@inline
def touch(s: State, key: int) -> None:
    s.node[key, IS_USED] = 1


@inline
def evict(s: State, key: int) -> int:
    victim = back(s, head(s, 0))
    while s.node[victim, IS_USED] or is_pinned(s, victim):
        s.node[victim, IS_USED] = 0
        move_to_front(s, head(s, 0), victim)
        victim = back(s, head(s, 0))
    unlink(s, victim)
    return victim


@inline
def insert(s: State, key: int) -> None:
    s.node[key, IS_USED] = 0
    push_front(s, head(s, 0), key, 1)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Clock(KernelPolicy):
    """CLOCK: approximates LRU without work on a hit."""

    name = "clock"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list, and a used bit for each key."""
        return new_state(shape, num_columns=5)

"""LRU over all layers: the textbook policy, and the wrong one here.

Layers run in turn, so a cache smaller than the per-token working set has always just evicted what
comes next, and hits nothing.
"""

from typing import Any

from hybridmoe.experts.policy.jit import State, access_kernel, demand, inline
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import head, move_to_front, oldest_unpinned, push_front, unlink

__all__ = ["GlobalLru"]


@inline
def touch(s: State, key: int) -> None:
    move_to_front(s, head(s, 0), key)


@inline
def evict(s: State, key: int) -> int:
    victim = oldest_unpinned(s, head(s, 0))
    unlink(s, victim)
    return victim


@inline
def insert(s: State, key: int) -> None:
    push_front(s, head(s, 0), key, 1)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class GlobalLru(KernelPolicy):
    """LRU: evicts the least recently used key."""

    name = "global-lru"
    kernel = on_access

"""FIFO over all layers."""

from typing import Any

from hybridmoe.experts.policy.jit import State, access_kernel, demand, inline
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import head, oldest_unpinned, push_front, unlink

__all__ = ["Fifo"]


@inline
def touch(s: State, key: int) -> None:
    pass


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


class Fifo(KernelPolicy):
    """FIFO: evicts the key that was loaded first."""

    name = "fifo"
    kernel = on_access

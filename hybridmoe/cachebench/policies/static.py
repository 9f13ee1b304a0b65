"""Static placement: the keys it was warmed with, or else the first to come, stay for good.

KTransformers places experts by their frequency in a sample of text: warm this policy with those.
"""

from typing import Any

from hybridmoe.experts.policy.jit import WHERE, State, access_kernel, demand, inline
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Static"]


@inline
def touch(s: State, key: int) -> None:
    pass


@inline
def evict(s: State, key: int) -> int:
    return -1


@inline
def insert(s: State, key: int) -> None:
    s.node[key, WHERE] = 1


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Static(KernelPolicy):
    """Static placement: no upload once full."""

    name = "static"
    kernel = on_access

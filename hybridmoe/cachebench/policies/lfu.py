"""LFU with ageing: a use counts half after 256 visits of its layer."""

from typing import Any

from hybridmoe.experts.policy.fading import FadingPolicy, demand_lowest
from hybridmoe.experts.policy.jit import State, access_kernel

__all__ = ["Lfu"]

RATE = 0.693 / 256  # of decay, per visit


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand_lowest(s, layer, experts, is_prefill, hits, admitted, evicted, RATE, 1.0)


class Lfu(FadingPolicy):
    """LFU with ageing: evicts the lowest decayed frequency."""

    name = "lfu"
    kernel = on_access

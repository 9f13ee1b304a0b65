"""MoE-Infinity's cache: how often this sequence used an expert, times how early its layer is.

Xue et al. 2024 (arXiv 2401.14361). Early layers are preferred because prefetching cannot help them.
A policy does not hear where sequences begin: counts fade by half in 64 visits instead. Their
prefetching by similar sequences is no part of this.
"""

from typing import Any

from hybridmoe.experts.policy.fading import FadingPolicy, demand_lowest
from hybridmoe.experts.policy.jit import LAYERS, State, access_kernel

__all__ = ["ActivationMap"]

RATE = 0.693 / 64  # of fading, per visit


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    num_layers = s.sizes[LAYERS]
    factor = (num_layers - layer) / num_layers
    return demand_lowest(s, layer, experts, is_prefill, hits, admitted, evicted, RATE, factor)


class ActivationMap(FadingPolicy):
    """Evicts the lowest product."""

    name = "moe-infinity"
    kernel = on_access

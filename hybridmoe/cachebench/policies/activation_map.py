"""MoE-Infinity's cache policy: uses by this sequence, weighted by how early the layer is.

Xue et al. 2024 (arXiv 2401.14361). Early layers are preferred because prefetching cannot help them.
A policy does not see where sequences begin: counts decay by half in 64 visits instead. Their
prefetching from similar sequences is not part of this.
"""

from typing import Any

from hybridmoe.experts.policy.fading import FadingPolicy, demand_lowest
from hybridmoe.experts.policy.jit import LAYERS, State, access_kernel

__all__ = ["ActivationMap"]

RATE = 0.693 / 64  # of decay, per visit


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    num_layers = s.sizes[LAYERS]
    factor = (num_layers - layer) / num_layers
    return demand_lowest(s, layer, experts, is_prefill, hits, admitted, evicted, RATE, factor)


class ActivationMap(FadingPolicy):
    """MoE-Infinity: evicts the lowest product of uses and layer weight."""

    name = "moe-infinity"
    kernel = on_access

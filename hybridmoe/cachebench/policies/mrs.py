"""HybriMoE's score: halved with every visit of the layer, raised for the experts chosen.

Zhong et al., DAC 2025 (arXiv 2504.05897), with their a = 0.5. They raise the 2 * top_k best by
their gate scores; a policy hears which experts were chosen, not the scores: all count alike.
"""

from typing import Any

from hybridmoe.experts.policy.fading import FadingPolicy, demand_lowest
from hybridmoe.experts.policy.jit import State, access_kernel

__all__ = ["Mrs"]

RATE = 0.693  # of fading, per visit


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand_lowest(s, layer, experts, is_prefill, hits, admitted, evicted, RATE, 1.0)


class Mrs(FadingPolicy):
    """Minus recent score: evicts the lowest."""

    name = "mrs"
    kernel = on_access

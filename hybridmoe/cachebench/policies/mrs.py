"""HybriMoE's score: halved with every visit of the layer, raised for the chosen experts.

Zhong et al., DAC 2025 (arXiv 2504.05897), with their a = 0.5. They raise the best 2 * top_k by
their gate scores; a policy sees only the chosen experts, so that all count the same.
"""

from typing import Any

from hybridmoe.experts.policy.fading import FadingPolicy, demand_lowest
from hybridmoe.experts.policy.jit import State, access_kernel

__all__ = ["Mrs"]

RATE = 0.693  # of decay, per visit


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand_lowest(s, layer, experts, is_prefill, hits, admitted, evicted, RATE, 1.0)


class Mrs(FadingPolicy):
    """MRS (minus recent score): evicts the lowest score."""

    name = "mrs"
    kernel = on_access

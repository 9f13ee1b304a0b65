"""Policies that run live: `lru` for RAM over disk, `cost-aware` for VRAM over RAM."""

from typing import Final

from hybridmoe.experts.policy.cost_aware import CostAware
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lru import LayerLru

__all__ = ["LIVE_POLICIES"]

LIVE_POLICIES: Final[dict[str, type[KernelPolicy]]] = {
    kind.name: kind for kind in (LayerLru, CostAware)
}

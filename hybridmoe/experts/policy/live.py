"""Policies that run live: `lru` for RAM over disk, `ema` for VRAM over RAM."""

from typing import Final

from hybridmoe.experts.policy.ema import Ema
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lru import LayerLru

__all__ = ["LIVE_POLICIES"]

LIVE_POLICIES: Final[dict[str, type[KernelPolicy]]] = {kind.name: kind for kind in (LayerLru, Ema)}

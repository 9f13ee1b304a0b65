"""Cache policies for experts, shared by the live caches and the simulator."""

from hybridmoe.experts.policy.interface import (
    CacheShape,
    Decision,
    LowerPolicy,
    Policy,
    PricedPolicy,
)
from hybridmoe.experts.policy.registry import DEFAULT_POLICY, make_policy

__all__ = [
    "DEFAULT_POLICY",
    "CacheShape",
    "Decision",
    "LowerPolicy",
    "Policy",
    "PricedPolicy",
    "make_policy",
]

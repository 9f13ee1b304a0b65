"""Who stays in an expert cache: policies, shared by the live cache and the simulator."""

from hybridmoe.experts.policy.interface import PREFILL_TOKENS, CacheShape, Decision, Policy
from hybridmoe.experts.policy.registry import DEFAULT_POLICY, POLICIES, make_policy

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "PREFILL_TOKENS",
    "CacheShape",
    "Decision",
    "Policy",
    "make_policy",
]

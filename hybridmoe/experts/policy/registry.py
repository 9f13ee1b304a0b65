"""Policies by name."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy.interface import CacheShape, Policy

__all__ = ["DEFAULT_POLICY", "build_policy", "make_policy"]

DEFAULT_POLICY = "lru"
P = TypeVar("P", bound=Policy)


def make_policy(name: str, shape: CacheShape, seed: int = 0) -> Policy:
    """Make an empty cache under a live policy.

    The first use of a policy on a machine compiles it: a second or two. Errors: ConfigError for an
    unknown name or an impossible shape.
    """
    # Inside, since it imports numba: half a second that a model without a cache does not need.
    from hybridmoe.experts.policy.live import LIVE_POLICIES

    return build_policy(LIVE_POLICIES, name, shape, seed)


def build_policy(
    policies: Mapping[str, Callable[[CacheShape, int], P]], name: str, shape: CacheShape, seed: int
) -> P:
    """Make an empty cache under one of these policies.

    seed: of policies that draw random numbers. Errors: ConfigError, as `make_policy`.
    """
    if name not in policies:
        raise ConfigError(f"cache policy {name!r:.40}: expected one of {', '.join(policies)}")
    for field, least, most in (
        ("num_layers", 1, 1 << 12),
        ("num_experts", 1, 1 << 15),
        ("num_slots", 0, 1 << 27),
        ("top_k", 1, shape.num_experts),
    ):
        if not least <= getattr(shape, field) <= most:
            raise ConfigError(f"cache {field}={getattr(shape, field)}: expected {least} to {most}")
    return policies[name](shape, seed)

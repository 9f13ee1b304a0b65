"""Policies by name. A new one is a module in this folder and a line here."""

from importlib import import_module
from typing import cast

from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy.interface import CacheShape, Policy

__all__ = ["DEFAULT_POLICY", "POLICIES", "make_policy"]

DEFAULT_POLICY = "lru"

# name -> module and class; imported when used, because each is compiled then.
_CLASSES = {
    "lru": "experts.policy.lru.LayerLru",
    "quota-lru": "cachebench.policies.quota_lru.QuotaLru",
    "global-lru": "cachebench.policies.global_lru.GlobalLru",
    "fifo": "cachebench.policies.fifo.Fifo",
    "random": "cachebench.policies.random_choice.Random",
    "clock": "cachebench.policies.clock.Clock",
    "lfu": "cachebench.policies.lfu.Lfu",
    "lfru": "cachebench.policies.lfru.Lfru",
    "slru": "cachebench.policies.slru.SegmentedLru",
    "2q": "cachebench.policies.two_q.TwoQ",
    "arc": "cachebench.policies.arc.Arc",
    "lirs": "cachebench.policies.lirs.Lirs",
    "s3-fifo": "cachebench.policies.s3_fifo.S3Fifo",
    "sieve": "cachebench.policies.sieve.Sieve",
    "w-tinylfu": "cachebench.policies.tiny_lfu.TinyLfu",
    "static": "cachebench.policies.static.Static",
    "ema": "experts.policy.ema.Ema",
    "mrs": "cachebench.policies.mrs.Mrs",
    "moe-infinity": "cachebench.policies.activation_map.ActivationMap",
    "least-stale": "cachebench.policies.least_stale.LeastStale",
}
POLICIES = tuple(_CLASSES)


def make_policy(name: str, shape: CacheShape, seed: int = 0) -> Policy:
    """An empty cache of the given shape under the named policy.

    seed: of policies that draw lots. The first use of a policy on a machine compiles it: a second
    or two. Errors: ConfigError for an unknown name or a shape that cannot be.
    """
    if name not in _CLASSES:
        raise ConfigError(f"cache policy {name!r:.40}: expected one of {', '.join(POLICIES)}")
    for field, least, most in (
        ("num_layers", 1, 1 << 12),
        ("num_experts", 1, 1 << 15),
        ("num_slots", 0, 1 << 27),
        ("top_k", 1, shape.num_experts),
    ):
        if not least <= getattr(shape, field) <= most:
            raise ConfigError(f"cache {field}={getattr(shape, field)}: expected {least} to {most}")
    module, _, class_name = _CLASSES[name].rpartition(".")
    kind = getattr(import_module(f"hybridmoe.{module}"), class_name)
    return cast(Policy, kind(shape, seed))

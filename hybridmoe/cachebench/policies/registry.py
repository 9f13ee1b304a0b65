"""All policies by name: the live ones and those that only the study runs.

A new policy is a module in this folder and a line here.
"""

from typing import Final

from hybridmoe.cachebench.policies.activation_map import ActivationMap
from hybridmoe.cachebench.policies.arc import Arc
from hybridmoe.cachebench.policies.clock import Clock
from hybridmoe.cachebench.policies.ema import Ema
from hybridmoe.cachebench.policies.fifo import Fifo
from hybridmoe.cachebench.policies.global_lru import GlobalLru
from hybridmoe.cachebench.policies.least_stale import LeastStale
from hybridmoe.cachebench.policies.lfru import Lfru
from hybridmoe.cachebench.policies.lfu import Lfu
from hybridmoe.cachebench.policies.lirs import Lirs
from hybridmoe.cachebench.policies.mrs import Mrs
from hybridmoe.cachebench.policies.quota_lru import QuotaLru
from hybridmoe.cachebench.policies.random_choice import Random
from hybridmoe.cachebench.policies.s3_fifo import S3Fifo
from hybridmoe.cachebench.policies.sieve import Sieve
from hybridmoe.cachebench.policies.slru import SegmentedLru
from hybridmoe.cachebench.policies.static import Static
from hybridmoe.cachebench.policies.tiny_lfu import TinyLfu
from hybridmoe.cachebench.policies.two_q import TwoQ
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.live import LIVE_POLICIES
from hybridmoe.experts.policy.registry import build_policy

__all__ = ["POLICIES", "make_policy"]

_STUDIED: tuple[type[KernelPolicy], ...] = (
    Ema,
    QuotaLru,
    GlobalLru,
    Fifo,
    Random,
    Clock,
    Lfu,
    Lfru,
    SegmentedLru,
    TwoQ,
    Arc,
    Lirs,
    S3Fifo,
    Sieve,
    TinyLfu,
    Static,
    Mrs,
    ActivationMap,
    LeastStale,
)
POLICIES: Final = LIVE_POLICIES | {kind.name: kind for kind in _STUDIED}


def make_policy(name: str, shape: CacheShape, seed: int = 0) -> KernelPolicy:
    """Make an empty cache under any policy. Errors: ConfigError, as its live namesake."""
    return build_policy(POLICIES, name, shape, seed)

"""Random splits of a model over VRAM slots, RAM slots and its file; what the simulator counts."""

from dataclasses import asdict

import numpy as np

from bench._checked_card import CheckedCard
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import requests_of
from hybridmoe.cachebench.tiers import Rates, simulate_tiers
from hybridmoe.config import ModelConfig
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.policy import CacheShape, PricedPolicy, make_policy
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.routing_trace import Trace
from hybridmoe.experts.stats import ExpertCounters
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.planning.buffer_pools import BufferPool
from hybridmoe.planning.disk_cache_plan import DiskCachePlan
from hybridmoe.planning.model_sizes import ModelSizes, sizes_of

__all__ = ["RandomSplit", "different_counters"]

_COUNTED = ("hits", "misses", "uploads", "evictions", "promoted", "returned")
_UPLOADS_PER_STEP = 3


class RandomSplit:
    """One split, open: what the tiers hold at most, what they hold at first, and how bytes move."""

    def __init__(
        self,
        file: GGUFFile,
        experts: RoutedExperts,
        seed: int,
        *,
        most_vram: float,
        most_ram: float,
    ) -> None:
        """most_vram, most_ram: most slots, as shares of all experts."""
        self.random = random = np.random.default_rng(seed)
        self.shape = experts.cache_shape(0)
        num_keys = self.shape.num_keys
        self.num_vram = int(random.integers(0, most_vram * num_keys + 1))
        config = ModelConfig.from_metadata(file.metadata)
        sizes = sizes_of(file.tensors.values(), config)
        self.plan = _plan(random, sizes, self.shape, most_ram)
        self.policy = ("cost-aware", "lru")[seed % 2]
        ram = CachedExperts(
            experts, ExpertLayout(file, experts), FileReader(file.parts, file.states), self.plan
        )
        arrives = random.uniform(0.2, 1.0)
        self.card = CheckedCard(
            ram,
            experts,
            self.num_vram,
            uploads_per_step=int(random.integers(1, 1 + _UPLOADS_PER_STEP)),
            policy=_vram_policy(self.policy, self.shape._replace(num_slots=self.num_vram)),
            is_exact=bool(random.random() < 0.3),
            slots=np.zeros((self.num_vram, self.plan.buffer_bytes), np.uint8),
            arrives=lambda: bool(random.random() < arrives),
        )
        self.warm = random.permutation(num_keys)[: int(random.integers(0, num_keys))]

    def load(self) -> None:
        """Fill the tiers with the keys that they begin with. Errors: DiskError."""
        cache = self.card.cache
        cache.warm(self.warm)
        if self.random.random() < 0.5:
            cache.fill()
        rest = self.warm[~np.isin(self.warm, cache.kept())]
        self.card.ram.load_hot(rest, lambda num_bytes: None)

    def counters(self) -> tuple[ExpertCounters, ExpertCounters]:
        """Counters of VRAM and of RAM."""
        return self.card.cache.stats().counters, self.card.ram.stats().counters

    def simulated(self, trace: Trace) -> tuple[ExpertCounters, ExpertCounters]:
        """Counters that the simulator has after the same run."""
        requests = requests_of(trace)
        vram = _vram_policy(self.policy, requests.shape(self.num_vram))
        slots = [pool.num_slots for pool in self.plan.pools]
        ram = RamPolicy(requests.shape(0), slots, self.plan.pool_of_layer)
        vram.warm(self.warm)
        ram.warm(self.warm[~np.isin(self.warm, vram.resident())])
        return simulate_tiers(vram, ram, requests, Rates(1.0, 1.0, 1.0, 1.0), 1.0).counters()


def different_counters(
    ours: tuple[ExpertCounters, ...], theirs: tuple[ExpertCounters, ...]
) -> list[tuple[str, int, int]]:
    """List the counters that differ, of those that routing alone decides."""
    return [
        (name, asdict(a)[name], asdict(b)[name])
        for a, b in zip(ours, theirs, strict=True)
        for name in _COUNTED
        if asdict(a)[name] != asdict(b)[name]
    ]


def _plan(
    random: np.random.Generator, sizes: ModelSizes, shape: CacheShape, most: float
) -> DiskCachePlan:
    """Draw a plan with a pool for each size. most: share of a pool's experts with slots."""
    by_layer = sizes.buffer_parts
    kinds = sorted(set(by_layer))
    pool_of_layer = tuple(map(kinds.index, by_layer))
    num_ahead, num_leaving = int(random.integers(0, 3)), int(random.integers(1, 5))
    pools = []
    for number, size in enumerate(kinds):
        num_layers = pool_of_layer.count(number)
        most_slots = int(most * num_layers * shape.num_experts)
        pools.append(
            BufferPool(
                size,
                num_layers,
                num_slots=int(random.integers(0, most_slots + 1)),
                num_staging=int(random.integers(shape.top_k, shape.num_experts)),
                num_aside=num_ahead + num_leaving,
            )
        )
    return DiskCachePlan(
        tuple(pools), pool_of_layer, by_layer, shape.num_experts, shape.top_k, num_ahead,
        num_leaving,
    )  # fmt: skip


def _vram_policy(name: str, shape: CacheShape) -> KernelPolicy:
    """Make a policy for VRAM that swaps often, whatever its name."""
    policy = make_policy(name, shape)
    assert isinstance(policy, KernelPolicy)
    if isinstance(policy, PricedPolicy):
        policy.upload_hits = 0.1
    return policy

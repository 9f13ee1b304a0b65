"""Replay over three tiers beside policies in Python lists, step by step."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_policies import Lru

from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import (
    EVICTIONS,
    HITS,
    MISSES,
    Requests,
    requests_of,
    simulate,
)
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.tiers import Rates, TierOutcome, simulate_tiers
from hybridmoe.experts.policy import CacheShape
from hybridmoe.experts.stats import ExpertCounters

RATES = Rates(vram=8.0, ram=4.0, disk=1.0, link=2.0)
SIZES = [2.0, 4.0, 6.0]  # bytes of an expert, by layer


def made(tokens: int, seed: int = 0) -> Requests:
    locality = Locality(zipf=1.0, reuse=0.4, conversation_tokens=40)
    return requests_of(
        synthetic_trace(
            tokens, num_layers=3, num_experts=8, top_k=2, locality=locality, prefill_tokens=20,
            seed=seed,
        )
    )  # fmt: skip


def replay(
    policy: str,
    num_vram: int,
    num_ram: list[int],
    requests: Requests,
    group_of: list[int],
    warm: list[int],
) -> TierOutcome:
    vram = make_policy(policy, requests.shape(num_vram))
    ram = RamPolicy(requests.shape(0), num_ram, group_of)
    if warm:
        keys = np.array(warm)
        vram.warm(keys)
        ram.warm(keys[~np.isin(keys, vram.resident())])
    return simulate_tiers(vram, ram, requests, RATES, SIZES)


class GroupedLru:
    """A cache for each group of layers. A layer keeps its number: others have nothing there."""

    def __init__(self, shape: CacheShape, slots: list[int], group_of: list[int]) -> None:
        self.layers = [[i for i, g in enumerate(group_of) if g == k] for k in range(len(slots))]
        self.group_of, self.experts = group_of, shape.num_experts
        self.parts = [
            Lru(shape._replace(num_layers=len(own), num_slots=n))
            for own, n in zip(self.layers, slots, strict=True)
        ]

    def of(self, layer: int) -> tuple[Lru, int]:
        group = self.group_of[layer]
        return self.parts[group], self.layers[group].index(layer)

    def local(self, keys: list[int]) -> list[int]:
        return [self.of(k // self.experts)[1] * self.experts + k % self.experts for k in keys]

    def on_access(
        self, layer: int, keys: list[int], is_prefill: bool
    ) -> tuple[list[bool], list[int], list[int]]:
        part, index = self.of(layer)
        return part.on_access(index, self.local(keys), is_prefill)

    def note_above(self, layer: int, keys: list[int]) -> None:
        part, index = self.of(layer)
        part.note_above(index, self.local(keys))

    def discard(self, key: int) -> bool:
        return self.of(key // self.experts)[0].discard(*self.local([key]))

    def offer(self, key: int) -> tuple[bool, int]:
        return self.of(key // self.experts)[0].offer(*self.local([key]))

    def warm(self, keys: list[int]) -> None:
        for group, part in enumerate(self.parts):
            own = [key for key in keys if self.group_of[key // self.experts] == group]
            for key in own[: part.shape.num_slots][::-1]:
                self.on_access(key // self.experts, [key], True)


class Reference:
    """The rules in Python: VRAM's policy is the real one, RAM's is in lists."""

    def __init__(self, policy: str, shape: CacheShape, num_vram: int, ram: GroupedLru) -> None:
        self.experts = shape.num_experts
        self.vram = make_policy(policy, shape._replace(num_slots=num_vram))
        self.ram = ram
        self.in_vram: set[int] = set()
        self.counters = ExpertCounters(), ExpertCounters()
        self.seconds: list[float] = []

    def warm(self, keys: list[int]) -> None:
        self.vram.warm(np.array(keys))
        self.in_vram = set(self.vram.resident().tolist())
        self.ram.warm([key for key in keys if key not in self.in_vram])

    def step(self, accesses: list[list[int]], is_prefill: bool) -> None:
        """accesses: the experts of each layer."""
        above, below = self.counters
        layer_s, read, over_link = 0.0, 0.0, 0.0
        for layer, experts in enumerate(accesses):
            keys = [layer * self.experts + expert for expert in experts]
            held = [key for key in keys if key in self.in_vram]
            rest = [key for key in keys if key not in self.in_vram]
            hits, admitted, evicted = self.ram.on_access(layer, rest, is_prefill)
            self.ram.note_above(layer, held)
            below.hits += sum(hits)
            below.misses += hits.count(False)
            below.uploads += len(admitted)
            below.evictions += len(evicted)
            read += hits.count(False) * SIZES[layer]
            misses = hits.count(False)
            arriving = misses + 1 / 4 if misses else 0.0
            layer_s += SIZES[layer] * max(len(held) / 8, len(rest) / 4, arriving)
        for layer, experts in enumerate(accesses):
            decision = self.vram.on_access(layer, np.array(experts, np.int32), is_prefill)
            above.note(decision)
            for expert in decision.admitted.tolist():
                self.in_vram.add(layer * self.experts + expert)
                was_in_ram = self.ram.discard(layer * self.experts + expert)
                below.promoted += was_in_ram
                read += 0 if was_in_ram else SIZES[layer]
                over_link += SIZES[layer]
            for key in decision.evicted.tolist():
                self.in_vram.remove(key)
                is_taken, victim = self.ram.offer(key)
                below.returned += is_taken
                below.evictions += victim >= 0
                over_link += SIZES[key // self.experts] if is_taken else 0
        self.seconds.append(max(layer_s, read, over_link / 2))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    vram=st.integers(0, 20),
    ram=st.integers(0, 20),
    num_warm=st.integers(0, 24),
    is_of_one_size=st.booleans(),
)
@pytest.mark.parametrize("policy", ["cost-aware", "global-lru"])
def test_it_counts_as_the_rules_in_lists(
    policy: str, seed: int, vram: int, ram: int, num_warm: int, is_of_one_size: bool
) -> None:
    requests = made(130, seed)
    warm = np.random.default_rng(seed).permutation(24)[:num_warm].tolist()
    num_ram, group_of = ([ram], [0, 0, 0]) if is_of_one_size else ([ram // 2, ram], [1, 0, 1])
    got = replay(policy, vram, num_ram, requests, group_of, warm)
    below = GroupedLru(requests.shape(0), num_ram, group_of)
    expected = Reference(policy, requests.shape(0), vram, below)
    if warm:
        expected.warm(warm)
    for step in range(requests.num_steps):
        ends = requests.starts[3 * step : 3 * step + 4]
        rows = [requests.experts[a:b].tolist() for a, b in pairwise(ends)]
        expected.step(rows, bool(requests.is_prefill[3 * step]))
    assert [asdict(c) for c in got.counters()] == [asdict(c) for c in expected.counters]
    assert got.seconds == pytest.approx(expected.seconds)


def test_without_vram_it_is_the_plain_replay() -> None:
    requests = made(200)
    got = replay("cost-aware", 0, [9], requests, [0, 0, 0], [])
    plain = simulate("lru", requests, 9)
    assert (got.ram.by_layer == plain.by_layer).all() and (got.ram.by_step == plain.by_step).all()
    assert got.vram.total(HITS) == 0 and not got.moves.any()


def test_vram_counts_as_without_a_tier_below() -> None:
    requests = made(200)
    got = replay("cost-aware", 5, [9], requests, [0, 0, 0], [])
    assert (got.vram.by_layer == simulate("cost-aware", requests, 5).by_layer).all()


def test_slots_of_both_tiers_add_up() -> None:
    requests = made(2000)
    vram = make_policy("cost-aware", requests.shape(10))
    ram = RamPolicy(requests.shape(0), [14])
    got = simulate_tiers(vram, ram, requests, RATES, SIZES)
    assert sorted([*vram.resident(), *ram.resident()]) == list(range(24))
    assert got.vram.total(EVICTIONS) > 2  # each one's slot in RAM is that of its newcomer
    assert not got.ram.by_step[60:, MISSES].any()

"""Policies beside reference policies in lists: the same hits, admissions, evictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_policies import Clock, Fifo, GlobalLru, Lru, QuotaLru, ReferencePolicy, Slru, TwoQ
from paper_policies import Arc, LeastStale, Lfru, Lirs, Random, Static, TinyLfu

from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.experts.policy import CacheShape

REFERENCES: dict[str, type[ReferencePolicy]] = {
    "global-lru": GlobalLru,
    "fifo": Fifo,
    "clock": Clock,
    "lru": Lru,
    "quota-lru": QuotaLru,
    "slru": Slru,
    "2q": TwoQ,
    "arc": Arc,
    "lirs": Lirs,
    "w-tinylfu": TinyLfu,
    "lfru": Lfru,
    "least-stale": LeastStale,
    "static": Static,
    "random": Random,
}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), slots=st.integers(1, 22), layers=st.integers(1, 4))
@pytest.mark.parametrize("name", REFERENCES)
def test_a_policy_decides_as_its_reference(name: str, seed: int, slots: int, layers: int) -> None:
    shape = CacheShape(layers, 8, slots, 2)
    policy, reference = make_policy(name, shape), REFERENCES[name](shape)
    random = np.random.default_rng(seed)
    for step in range(60):
        is_prefill = step % 13 == 7
        for layer in range(layers):
            count = int(random.integers(1, 7 if is_prefill else 4))
            experts = (random.permutation(8) ** 2 // 8)[:count]
            experts = np.array(list(dict.fromkeys(experts.tolist())), np.int32)
            got = policy.on_access(layer, experts, is_prefill)
            keys = (layer * 8 + experts).tolist()
            hits, admitted, evicted = reference.on_access(layer, keys, is_prefill)
            assert got.hits.tolist() == hits
            assert (layer * 8 + got.admitted).tolist() == admitted
            assert got.evicted.tolist() == evicted


@pytest.mark.parametrize(
    ("name", "half_life"), [("lfu", 256.0), ("mrs", 1.0), ("moe-infinity", 64.0)]
)
def test_scores_fade_and_the_lowest_leaves(name: str, half_life: float) -> None:
    shape = CacheShape(3, 16, 20, 3)
    policy = make_policy(name, shape)
    random = np.random.default_rng(5)
    scores, resident, visits = np.zeros(48), set[int](), np.zeros(3)
    rate = 0.693 / half_life
    last = np.zeros(48)  # the visit that a score is faded to
    for _ in range(1500):  # enough that weights are brought down
        for layer in range(3):
            visits[layer] += 1
            experts = random.permutation(16)[:3].astype(np.int32)
            got = policy.on_access(layer, experts, False)
            keys = layer * 16 + experts
            faded = scores * np.exp(-rate * (np.repeat(visits, 16) - last))
            faded[keys] += (3 - layer) / 3 if name == "moe-infinity" else 1
            scores, last = faded, np.repeat(visits, 16).astype(float)
            # A layer that has not been visited yet in this pass is faded once less.
            weights = np.log(np.maximum(scores, 1e-300)) + rate * last
            free = resident - set(keys.tolist())
            for key in got.evicted.tolist():
                assert weights[key] <= min(weights[k] for k in free) + 1e-9
                free.remove(key)
            resident = set(policy.resident().tolist())


@pytest.mark.parametrize("slots", [4, 20, 40])
def test_ema_swaps_the_lowest_for_one_that_is_clearly_higher_and_seldom(slots: int) -> None:
    shape = CacheShape(3, 16, slots, 3)
    policy = make_policy("ema", shape)
    random = np.random.default_rng(slots)
    scores, since, visits = np.zeros(48), dict[int, int](), [0, 0, 0]
    most_swaps, num_swaps = max(1, slots // 64), 0
    for step in range(600):
        num_swaps = 0
        for layer in range(3):
            visits[layer] += 1
            popular = (random.permutation(16) ** 2 // 16 + step // 200 * 5) % 16
            experts = np.array(list(dict.fromkeys(popular.tolist()))[:3], np.int32)
            got = policy.on_access(layer, experts, False)
            keys = (layer * 16 + experts).tolist()
            # A use weighs e ** (visit / 64): as good as letting all scores fade.
            scores[keys] += np.exp(visits[layer] / 64)
            evicted = got.evicted.tolist()
            for key, is_hit in zip(keys, got.hits.tolist(), strict=True):
                if is_hit:
                    continue
                is_admitted = key % 16 in got.admitted.tolist()
                if len(since) < slots:
                    assert is_admitted
                    since[key] = visits[layer]
                    continue
                free = [other for other in since if other not in keys]
                lowest = min(scores[free])
                ratio = scores[key] / lowest
                candidates = [o for o in free if scores[o] <= lowest * (1 + 1e-9)]
                settled = [o for o in candidates if visits[o // 16] - since[o] >= 16]
                if is_admitted:
                    victim = evicted.pop(0)
                    assert num_swaps < most_swaps and victim in settled and ratio > 1.5 - 1e-9
                    num_swaps += 1
                    del since[victim]
                    since[key] = visits[layer]
                else:
                    is_bound = num_swaps == most_swaps or settled != candidates
                    assert is_bound or ratio <= 1.5 + 1e-9
            assert not evicted
            assert sorted(since) == policy.resident().tolist()

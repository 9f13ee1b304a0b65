"""Invariants of every cache policy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybridmoe.cachebench.policies.registry import POLICIES, make_policy
from hybridmoe.experts.policy import CacheShape

Access = tuple[int, list[int], bool]


@st.composite
def runs(draw: st.DrawFn) -> tuple[CacheShape, list[Access]]:
    """Draw a small cache and its accesses: steps of all layers in turn, some of them prefill."""
    num_layers, num_experts = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    shape = CacheShape(num_layers, num_experts, draw(st.integers(0, num_layers * num_experts)), 2)
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    accesses: list[Access] = []
    for _ in range(draw(st.integers(1, 60))):
        is_prefill = bool(random.random() < 0.1)
        for layer in range(num_layers):
            count = int(random.integers(1, num_experts + 1)) if is_prefill else 2
            popular = random.zipf(1.5, 4 * count) % num_experts
            accesses.append((layer, list(dict.fromkeys(popular.tolist()))[:count], is_prefill))
    return shape, accesses


def expert_array(experts: list[int]) -> NDArray[np.int32]:
    return np.array(experts, np.int32)


@settings(max_examples=30)
@given(run=runs())
@pytest.mark.parametrize("name", POLICIES)
def test_every_decision_keeps_invariants(name: str, run: tuple[CacheShape, list[Access]]) -> None:
    shape, accesses = run
    policy = make_policy(name, shape)
    resident: set[int] = set()
    for layer, experts, is_prefill in accesses:
        keys = [layer * shape.num_experts + expert for expert in experts]
        decision = policy.on_access(layer, expert_array(experts), is_prefill)
        assert decision.hits.tolist() == [key in resident for key in keys]
        admitted = [layer * shape.num_experts + int(e) for e in decision.admitted]
        evicted = decision.evicted.tolist()
        misses = [key for key in keys if key not in resident]
        assert admitted == [key for key in misses if key in admitted]
        assert len(set(evicted)) == len(evicted) and set(evicted) <= resident - set(keys)
        assert not (is_prefill and evicted)
        resident = (resident - set(evicted)) | set(admitted)
        assert len(resident) <= shape.num_slots
        assert policy.resident().tolist() == sorted(resident)


@pytest.mark.parametrize("name", POLICIES)
def test_a_cache_for_every_expert_misses_each_once(name: str) -> None:
    shape = CacheShape(3, 8, 24, 2)
    policy = make_policy(name, shape)
    random = np.random.default_rng(7)
    missed: list[int] = []
    for _ in range(50):
        for layer in range(3):
            experts = expert_array(random.permutation(8)[:2].tolist())
            hits = policy.on_access(layer, experts, False).hits
            missed += (layer * 8 + experts[~hits]).tolist()
    assert len(missed) == len(set(missed))


@pytest.mark.parametrize("name", POLICIES)
def test_warm_keys_are_resident_up_to_the_slots(name: str) -> None:
    policy = make_policy(name, CacheShape(2, 8, 3, 2))
    policy.warm(np.array([9, 2, 4, 11, 0]))
    assert policy.resident().tolist() == [2, 4, 9]


def test_global_lru_below_the_working_set_hits_nothing_and_lru_does() -> None:
    hits = {"global-lru": 0, "lru": 0}
    for name in hits:
        policy = make_policy(name, CacheShape(10, 16, 15, 2))  # the working set is 20
        random = np.random.default_rng(3)
        experts = [expert_array([0, 1])] * 10
        for _ in range(100):
            for layer in range(10):
                if random.random() < 0.5:
                    experts[layer] = expert_array(random.permutation(16)[:2].tolist())
                hits[name] += int(policy.on_access(layer, experts[layer], False).hits.sum())
    assert hits["global-lru"] == 0
    assert hits["lru"] > 400  # of 2000

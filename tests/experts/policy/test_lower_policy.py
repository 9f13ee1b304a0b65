"""Layer-aware LRU below another tier: beside a reference in lists, and rules one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from list_policies import Lru

from hybridmoe.experts.policy import CacheShape, LowerPolicy, make_policy
from hybridmoe.experts.policy.lru import LayerLru


def lower_policy(shape: CacheShape) -> LowerPolicy:
    policy = make_policy("lru", shape)
    assert isinstance(policy, LayerLru)
    return policy


def array(experts: list[int]) -> np.ndarray:
    return np.array(experts, np.int32)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    slots=st.integers(0, 18),
    above=st.integers(0, 10),
    layers=st.integers(1, 4),
)
def test_it_decides_as_its_reference(seed: int, slots: int, above: int, layers: int) -> None:
    shape = CacheShape(layers, 8, slots, 2)
    policy, reference = lower_policy(shape), Lru(shape)
    random = np.random.default_rng(seed)
    held: set[int] = set()  # by the tier above
    for step in range(60):
        is_prefill = step % 13 == 7
        used: list[int] = []
        for layer in range(layers):
            count = int(random.integers(1, 7 if is_prefill else 4))
            experts = list(dict.fromkeys(((random.permutation(8) ** 2 // 8)[:count]).tolist()))
            keys = [layer * 8 + expert for expert in experts]
            below = [key for key in keys if key not in held]
            got = policy.on_access(layer, array([key % 8 for key in below]), is_prefill)
            hits, admitted, evicted = reference.on_access(layer, below, is_prefill)
            assert got.hits.tolist() == hits
            assert (layer * 8 + got.admitted).tolist() == admitted
            assert got.evicted.tolist() == evicted
            noted = [key for key in keys if key in held]
            policy.note_above(layer, array([key % 8 for key in noted]))
            reference.note_above(layer, noted)
            used += keys
        for key in random.permutation(used)[:2].tolist():  # admitted above, for others
            if key in held:
                continue
            held.add(key)
            assert policy.discard(key) == reference.discard(key)
            while len(held) > above:
                leaving = int(random.choice(sorted(held)))
                held.remove(leaving)
                assert policy.offer(leaving) == reference.offer(leaving)
        assert policy.resident().tolist() == sorted(reference.resident)


def test_an_expert_comes_back_as_old_as_its_last_use_above() -> None:
    policy = lower_policy(CacheShape(1, 8, 2, 1))
    for expert in (0, 1, 2):  # 2 in place of 0
        policy.on_access(0, array([expert]), False)
    policy.on_access(0, array([]), False)  # 7 is used above
    policy.note_above(0, array([7]))
    assert policy.offer(7) == (True, 1)
    assert policy.offer(0) == (False, -1)
    policy.on_access(0, array([3]), False)  # in place of 2, although 7 came later
    assert policy.resident().tolist() == [3, 7]


def test_a_free_slot_takes_whatever_is_offered() -> None:
    policy = lower_policy(CacheShape(2, 8, 2, 1))
    policy.on_access(0, array([0]), False)
    assert policy.offer(12) == (True, -1)  # never used
    policy.on_access(1, array([0]), False)
    assert policy.resident().tolist() == [0, 8]  # so that it is the first to leave


def test_a_discarded_expert_leaves_a_slot_free() -> None:
    policy = lower_policy(CacheShape(1, 8, 2, 1))
    policy.on_access(0, array([0, 1]), False)
    assert policy.discard(0) and not policy.discard(0)
    assert policy.on_access(0, array([2]), False).evicted.tolist() == []
    assert policy.resident().tolist() == [1, 2]


def test_of_equals_the_layer_that_runs_last_gives_its_slot() -> None:
    policy = lower_policy(CacheShape(3, 4, 3, 1))
    for step in range(2):
        for layer in range(3):
            policy.on_access(layer, array([0] if step == 0 else []), False)
    policy.note_above(0, array([1]))
    assert policy.offer(1) == (True, 8)
    assert policy.offer(2) == (False, -1)  # never used


def test_without_slots_nothing_is_taken() -> None:
    policy = lower_policy(CacheShape(2, 4, 0, 1))
    policy.on_access(0, array([0]), False)
    policy.note_above(0, array([1]))
    assert policy.offer(1) == (False, -1)

"""The native layer-aware LRU decides as the numba one, and takes back what VRAM gives up."""

import numpy as np
import pytest

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.experts.policy import CacheShape
from hybridmoe.experts.policy.lru import LayerLru

LAYERS, EXPERTS = 5, 12


def chosen(rng: np.random.Generator, most: int) -> list[int]:
    """Distinct experts, some far likelier than others."""
    drawn = (rng.random(int(rng.integers(0, most + 1))) ** 2 * EXPERTS).astype(int)
    return list(dict.fromkeys(drawn.tolist()))


@pytest.mark.parametrize("num_moves", [0, 2])
@pytest.mark.parametrize("num_slots", [0, 1, 4, 7, 23, LAYERS * EXPERTS])
def test_decisions_are_those_of_the_policy_that_the_simulator_runs(
    num_slots: int, num_moves: int
) -> None:
    """num_moves: keys that VRAM takes or gives up between two steps."""
    rng = np.random.default_rng(num_slots)
    above: set[int] = set()
    ours = _C.LayerLru([0] * LAYERS, EXPERTS, [num_slots])
    theirs = LayerLru(CacheShape(LAYERS, EXPERTS, num_slots, 4))
    hot = rng.permutation(LAYERS * EXPERTS)[:9]
    ours.warm(hot.tolist())
    theirs.warm(hot)
    assert ours.resident() == theirs.resident().tolist()
    for step in range(400):
        is_prefill = step % 37 == 0
        for layer in range(LAYERS):
            used = chosen(rng, EXPERTS if is_prefill else 4)
            experts = [e for e in used if layer * EXPERTS + e not in above]
            others = [e for e in used if layer * EXPERTS + e in above]
            hits, admitted, evicted = ours.on_access(layer, experts, others, is_prefill)
            want = theirs.on_access(layer, np.array(experts, np.int32), is_prefill)
            theirs.note_above(layer, np.array(others, np.int32))
            assert hits == want.hits.tolist()
            assert admitted == want.admitted.tolist()
            assert evicted == want.evicted.tolist()
        for key in rng.integers(0, LAYERS * EXPERTS, num_moves).tolist():
            if key in above:
                above.remove(key)
                assert ours.offer(key) == theirs.offer(key)
            else:
                above.add(key)
                assert ours.discard(key) == theirs.discard(key)
        assert ours.resident() == theirs.resident().tolist()


def test_a_group_of_layers_is_a_cache_for_itself() -> None:
    rng = np.random.default_rng(1)
    group_of = [0, 1, 0, 1, 1]
    both = _C.LayerLru(group_of, EXPERTS, [5, 11])
    alone = [_C.LayerLru([0] * group_of.count(g), EXPERTS, [n]) for g, n in enumerate((5, 11))]
    for step in range(300):
        for layer, group in enumerate(group_of):
            experts = chosen(rng, 4)
            rank = group_of[:layer].count(group)
            hits, admitted, evicted = both.on_access(layer, experts, [], step % 20 == 0)
            of_group = alone[group].on_access(rank, experts, [], step % 20 == 0)
            assert (hits, admitted) == of_group[:2]
            layers = [i for i, g in enumerate(group_of) if g == group]
            theirs = [layers[key // EXPERTS] * EXPERTS + key % EXPERTS for key in of_group[2]]
            assert evicted == theirs


def test_what_comes_back_is_as_old_as_its_last_use_above() -> None:
    lru = _C.LayerLru([0, 0], EXPERTS, [2])
    first, second, back = 0, 1, EXPERTS + 3
    for visit in range(4):
        lru.on_access(0, [first] if visit != 3 else [second], [], False)
        lru.on_access(1, [], [3], False)
    assert lru.resident() == [first, second]
    # `first` was passed over once, its layer's newest never; `back` was used in the last visit.
    assert lru.offer(back) == (True, first)
    assert lru.resident() == [second, back]
    assert lru.discard(back)
    assert not lru.discard(back)
    assert lru.offer(back) == (True, -1)
    for _ in range(2):
        lru.on_access(0, [second], [4], False)
    # Passed over as often as the oldest resident: it is not worth a copy.
    assert lru.offer(4) == (False, -1)
    assert lru.resident() == [second, back]


def test_a_key_that_comes_back_leaves_in_its_turn() -> None:
    lru = _C.LayerLru([0], EXPERTS, [3])
    lru.on_access(0, [0], [], False)
    lru.on_access(0, [1], [5], False)
    lru.on_access(0, [2], [], False)
    assert lru.offer(5) == (True, 0)  # used with 1, before 2: the older of equals
    assert lru.on_access(0, [7], [], False)[2] == [5]
    assert lru.on_access(0, [8], [], False)[2] == [1]


@pytest.mark.parametrize(
    ("layer", "experts", "above"),
    [(2, [0], []), (-1, [0], []), (0, [EXPERTS], []), (0, [-1], []), (0, [3, 3], []),
     (0, [3], [3]), (0, [], [1]), (0, [2], [EXPERTS])],
)  # fmt: skip
def test_accesses_that_cannot_be_are_refused_and_change_nothing(
    layer: int, experts: list[int], above: list[int]
) -> None:
    lru = _C.LayerLru([0, 0], EXPERTS, [4])
    lru.on_access(0, [1, 2], [], False)
    with pytest.raises(ShapeError, match="LayerLru: "):
        lru.on_access(layer, experts, above, False)
    assert lru.resident() == [1, 2]
    for call in (lru.discard, lru.offer):
        with pytest.raises(ShapeError, match="LayerLru: key"):
            call(2 * EXPERTS)
    with pytest.raises(ShapeError, match="resident already"):
        lru.offer(1)


@pytest.mark.parametrize("shape", [([], 4, [1]), ([0], 0, [1]), ([1], 4, [1]), ([0], 4, [-1])])
def test_shapes_that_cannot_be_are_refused(shape: tuple[list[int], int, list[int]]) -> None:
    with pytest.raises(ShapeError, match="LayerLru: "):
        _C.LayerLru(*shape)

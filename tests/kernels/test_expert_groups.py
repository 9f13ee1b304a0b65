"""Groups of experts and tiles of their pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.kernels.expert_groups import FEW_ROWS, MANY_ROWS, cut_groups, tile_rows, tiles_of

Counts = st.lists(st.integers(1, 300), max_size=20)


@given(Counts, st.integers(1, 6), st.integers(1, 600))
def test_groups_are_as_large_as_they_may_be(counts: list[int], experts: int, pairs: int) -> None:
    groups = list(cut_groups(counts, experts, pairs))
    assert [n for group in groups for n in range(group.start, group.stop)] == [*range(len(counts))]
    for group in groups:
        total, size = sum(counts[group]), group.stop - group.start
        assert size <= experts and (total <= pairs or size == 1)
        if group.stop < len(counts):
            assert size == experts or total + counts[group.stop] > pairs


@given(st.integers(0, 50), Counts, st.sampled_from([FEW_ROWS, MANY_ROWS]))
def test_tiles_cover_each_pair_once(first: int, counts: list[int], rows: int) -> None:
    owner = np.repeat(np.arange(len(counts)), counts)
    found = np.full(len(owner), -1)
    for expert, start, end in tiles_of(first, counts, rows).tolist():
        part = slice(start - first, min(end, start + rows) - first)
        assert (found[part] == -1).all() and part.start < part.stop
        found[part] = expert
        assert end - first == sum(counts[: expert + 1])
    assert (found == owner).all()


def test_small_tiles_for_few_pairs() -> None:
    assert [tile_rows(n) for n in (1, 64, 65, 4096)] == [FEW_ROWS, FEW_ROWS, MANY_ROWS, MANY_ROWS]

"""Prompt-lookup drafts: longest n-gram first, then the latest place."""

import pytest

from hybridmoe.engine.prompt_lookup import NgramIndex


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 2, 3], [4, 5, 6]),
        ([1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3], [4, 9, 2]),  # three matching tokens before two
        ([2, 3, 4, 9, 2, 3, 7, 8, 2, 3], [7, 8, 2]),  # the latest place
        ([5, 6, 5, 6], [5, 6, 5]),  # a repetition continues
        ([1, 2, 3, 4], []),
        ([1], []),
    ],
)
def test_drafts(ids: list[int], expected: list[int]) -> None:
    assert NgramIndex().draft(ids, 3) == expected
    grown = NgramIndex()
    for end in range(1, len(ids)):
        grown.draft(ids[:end], 3)
    assert grown.draft(ids, 3) == expected

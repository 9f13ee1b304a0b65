"""Prompt lookup: it finds what followed, the latest and the longest first."""

import pytest

from hybridmoe.engine.prompt_lookup import PromptLookup


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 2, 3], [4, 5, 6]),
        ([1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3], [4, 9, 2]),  # three tokens before two
        ([2, 3, 4, 9, 2, 3, 7, 8, 2, 3], [7, 8, 2]),  # the latest
        ([5, 6, 5, 6], [5, 6, 5]),  # a repetition goes on
        ([1, 2, 3, 4], []),
        ([1], []),
    ],
)
def test_proposals(ids: list[int], expected: list[int]) -> None:
    assert PromptLookup().propose(ids, 3) == expected
    grown = PromptLookup()
    for end in range(1, len(ids)):
        grown.propose(ids[:end], 3)
    assert grown.propose(ids, 3) == expected

"""Literal matcher: equal to trying each literal, with shared prefixes, in stretches."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.text import literal_matcher
from hybridmoe.text.literal_matcher import LiteralMatcher

LITERALS = st.lists(st.text("<|ab", min_size=1, max_size=5), min_size=1, unique=True)


@given(LITERALS, st.text("<|ab", max_size=40), st.integers(1, 50))
def test_literals_are_found_as_by_trying_each(literals: list[str], text: str, stretch: int) -> None:
    longest_first = sorted(literals, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    matcher = LiteralMatcher(literals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(literal_matcher, "STRETCH_CHARS", stretch)
        assert list(matcher.find(text)) == [match.span() for match in pattern.finditer(text)]
        starts = [i for i in range(len(text)) if pattern.match(text, i)]
        assert [start for start, _ in matcher.find(text, is_overlapping=True)] == starts


def test_a_shared_prefix_is_tried_once() -> None:
    reserved = [f"<|reserved_token_{i}|>" for i in range(163_602, 163_838)]
    pattern = literal_matcher.longest_match_pattern([*reserved, "<|im_end|>", "[BOS]"])
    assert pattern.count("<") == 1 and pattern.count("reserved") == 1


def test_a_long_text_is_searched_in_stretches() -> None:
    checks: list[None] = []
    text = "a" * 10 * literal_matcher.STRETCH_CHARS
    assert list(LiteralMatcher(["<|x|>"]).find(text, lambda: checks.append(None))) == []
    assert len(checks) == 10

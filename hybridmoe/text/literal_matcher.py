"""Finds a set of literal strings, such as special tokens, in untrusted text.

A regular expression of plain alternatives tries them one by one at every place, and holds the
interpreter lock during a search: 2 MB of "<" against the 250 special tokens of Kimi K2 blocked the
process for 17 s. Here literals share their prefixes (a trie), and long texts are searched in
stretches.
"""

import re
from collections.abc import Callable, Iterator, Sequence

__all__ = ["STRETCH_CHARS", "LiteralMatcher", "longest_match_pattern"]

_MAX_DEPTH = 16  # of the trie; below it, alternatives are tried one by one
STRETCH_CHARS = 1 << 16


class LiteralMatcher:
    """Finds literals in text; where several start at one place, the longest."""

    def __init__(self, literals: Sequence[str]) -> None:
        self._max_length = max(map(len, literals), default=0)
        self._pattern = re.compile(longest_match_pattern(literals)) if literals else None

    def find(
        self, text: str, check: Callable[[], None] | None = None, *, is_overlapping: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Iterate over the spans of all matches, in order.

        check: called once in a stretch or more often; may raise. is_overlapping: with matches that
        start within another.
        """
        start, size = 0, len(text) if self._pattern else 0
        while start < size:
            if check is not None:
                check()
            end = min(size, start + STRETCH_CHARS)
            assert self._pattern is not None
            match = self._pattern.search(text, start, end + self._max_length)
            if match is None or match.start() >= end:
                start = end
            else:
                yield match.span()
                start = match.start() + 1 if is_overlapping else match.end()


def longest_match_pattern(literals: Sequence[str], depth: int = _MAX_DEPTH) -> str:
    """Build the pattern of a trie, `depth` levels deep, that prefers the longest literal."""
    first, last = min(literals), max(literals)
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    prefix = first[: next(differing, len(first))]
    suffixes = [literal[len(prefix) :] for literal in literals]
    if depth == 0:
        branches = [re.escape(suffix) for suffix in sorted(suffixes, key=len, reverse=True)]
    else:
        groups: dict[str, list[str]] = {}
        for suffix in suffixes:
            groups.setdefault(suffix[:1], []).append(suffix)
        is_literal = groups.pop("", None) is not None  # the prefix itself
        branches = [longest_match_pattern(group, depth - 1) for group in groups.values()]
        branches += [""] if is_literal else []
    return re.escape(prefix) + (f"(?:{'|'.join(branches)})" if branches != [""] else "")

"""Search for names in a text of any length.

Python's regular expressions try alternatives one after another, and hold the interpreter's lock
for as long as one search takes: 2 MB of "<" among the 250 special names of Kimi K2 stopped the
process for 17 s. Here names with one beginning are tried only behind it, and a search is cut into
stretches.
"""

import re
from collections.abc import Callable, Iterator, Sequence

__all__ = ["LiteralMatcher"]

_MAX_DEPTH = 16  # of groups; names that differ later than that are tried one after another
_STRETCH_CHARS = 1 << 16


class LiteralMatcher:
    """Some names, to be found in texts; where several begin at one place, the longest."""

    def __init__(self, names: Sequence[str]) -> None:
        self._longest = max(map(len, names), default=0)
        self._pattern = re.compile(_any_of(names, _MAX_DEPTH)) if names else None

    def find(
        self, text: str, check: Callable[[], None] | None = None, *, is_overlapping: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Their begins and ends, in order; check: called now and then.

        is_overlapping: also those that begin within another.
        """
        start, size = 0, len(text) if self._pattern else 0
        while start < size:
            if check is not None:
                check()
            end = min(size, start + _STRETCH_CHARS)
            assert self._pattern is not None
            match = self._pattern.search(text, start, end + self._longest)
            if match is None or match.start() >= end:
                start = end
            else:
                yield match.span()
                start = match.start() + 1 if is_overlapping else match.end()


def _any_of(names: Sequence[str], depth: int) -> str:
    """A pattern for the longest of the names."""
    first, last = min(names), max(names)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    beginning = first[: next(same, len(first))]
    rests = [name[len(beginning) :] for name in names]
    if depth == 0:
        parts = [re.escape(rest) for rest in sorted(rests, key=len, reverse=True)]
    else:
        groups: dict[str, list[str]] = {}
        for rest in rests:
            groups.setdefault(rest[:1], []).append(rest)
        is_name = groups.pop("", None) is not None  # the beginning by itself
        parts = [_any_of(group, depth - 1) for group in groups.values()]
        parts += [""] if is_name else []
    return re.escape(beginning) + (f"(?:{'|'.join(parts)})" if parts != [""] else "")

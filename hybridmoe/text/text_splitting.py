"""Long texts in pieces that an encoder can be given one at a time."""

import functools
import re
from collections.abc import Iterator

__all__ = ["split_long_runs", "split_text"]

# Between these, no pattern of any vocabulary takes what comes before and after as one: a blank goes
# with the word behind it, and a line break with what is before it.
_PLACE = re.compile(r"[A-Za-z](?= [A-Za-z])|\S\n(?=\w)")


def split_text(text: str, least_chars: int) -> Iterator[str]:
    """Pieces of `least_chars` to twice as many, but for the last; cut where that does not
    show in the ids, if there is such a place.
    """
    start = 0
    while len(text) - start > 2 * least_chars:
        place = _PLACE.search(text, start + least_chars, start + 2 * least_chars)
        end = place.end() if place else start + 2 * least_chars
        yield text[start:end]
        start = end
    yield text[start:]


def split_long_runs(text: str, max_chars: int) -> Iterator[str]:
    """The text, cut within long runs of blanks, or of other characters."""
    for match in _stretches(max_chars).finditer(text):
        if match.group():
            yield match.group()


@functools.cache
def _stretches(max_chars: int) -> re.Pattern[str]:
    """Shorter runs as they come, and then the beginning of a longer one. Takes a step or two for
    each character: `\\S{4096}` alone would try a run again at each of its places.
    """
    most = max_chars - 1
    short = rf"\S{{1,{most}}}+(?!\S)|\s{{1,{most}}}+(?!\s)"
    return re.compile(rf"(?:{short})*+(?:\S{{{max_chars}}}|\s{{{max_chars}}})?")

"""Splits long texts into pieces that an encoder takes one at a time."""

import functools
import re
from collections.abc import Iterator

__all__ = ["split_long_runs", "split_text"]

# Pre-tokenizers of all vocabularies split here: a blank belongs to the word behind it, and a line
# break to the text before it.
_SAFE_SPLIT = re.compile(r"[A-Za-z](?= [A-Za-z])|\S\n(?=\w)")


def split_text(text: str, min_chars: int) -> Iterator[str]:
    """Split into pieces of `min_chars` to twice as many; the last may be shorter.

    The token ids do not change where a piece has a place to split between pre-tokens.
    """
    start = 0
    while len(text) - start > 2 * min_chars:
        place = _SAFE_SPLIT.search(text, start + min_chars, start + 2 * min_chars)
        end = place.end() if place else start + 2 * min_chars
        yield text[start:end]
        start = end
    yield text[start:]


def split_long_runs(text: str, max_chars: int) -> Iterator[str]:
    """Split within runs of more than `max_chars` blanks, or non-blanks."""
    for match in _up_to_long_run(max_chars).finditer(text):
        if match.group():
            yield match.group()


@functools.cache
def _up_to_long_run(max_chars: int) -> re.Pattern[str]:
    """Pattern of shorter runs, then the first `max_chars` of a longer one.

    Linear in the text: `\\S{4096}` alone would try each run again at every character.
    """
    most = max_chars - 1
    short = rf"\S{{1,{most}}}+(?!\S)|\s{{1,{most}}}+(?!\s)"
    return re.compile(rf"(?:{short})*+(?:\S{{{max_chars}}}|\s{{{max_chars}}})?")

"""Marks of tool calls in streamed text: special tokens by id, and texts around them.

A special token is a mark by its id only: the same characters in ordinary text are text. In what is
searched, each stands as one character that no text can hold (a lone surrogate). A mark is made of
such characters and ordinary ones: `<` + the token DSML + `invoke`, or a line break and the token
that begins a call.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hybridmoe.text.literal_matcher import LiteralMatcher

__all__ = ["MarkScanner", "Piece", "stand_in"]


class Piece(NamedTuple):
    """Text, or a mark. Their texts, joined, are what the model wrote."""

    text: str
    mark: str | None = None  # its name


def stand_in(number: int) -> str:
    """Make the character for a special token; no decoded text has it."""
    return chr(0xD800 + number)


class MarkScanner:
    """Splits streamed text into text and marks; holds back what may yet become a mark."""

    def __init__(self, marks: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        """marks: names by text. tokens: texts of special tokens by stand-in."""
        self._marks = marks
        self._tokens = {ord(character): text for character, text in tokens.items()}
        self._matcher = LiteralMatcher(list(marks))
        self._prefixes = {mark[:n] for mark in marks for n in range(1, len(mark))}
        self._longest = max(map(len, marks), default=0)
        self._held = ""

    def push(self, text: str) -> Iterable[Piece]:
        """Add text with stand-ins. Returns the pieces that it completes."""
        text = self._held + text
        cut = len(text) - self._num_held(text)
        out = list(self._split(text[:cut]))
        self._held = text[cut:]
        return out

    def flush(self) -> Iterable[Piece]:
        """Return the text that was held back."""
        text, self._held = self._held, ""
        return list(self._split(text))

    def _num_held(self, text: str) -> int:
        """Length of the longest suffix that more text may make a longer mark."""
        most = min(self._longest - 1, len(text))
        return next((n for n in range(most, 0, -1) if text[-n:] in self._prefixes), 0)

    def _split(self, text: str) -> Iterable[Piece]:
        start = 0
        for begin, end in self._matcher.find(text):
            if start < begin:
                yield self._piece(text[start:begin])
            yield self._piece(text[begin:end], self._marks[text[begin:end]])
            start = end
        if start < len(text):
            yield self._piece(text[start:])

    def _piece(self, text: str, mark: str | None = None) -> Piece:
        return Piece(text.translate(self._tokens), mark)

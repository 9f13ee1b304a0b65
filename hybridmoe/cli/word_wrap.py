"""Word wrap of text that comes in pieces: shown at once, and moved if a word gets too long."""

import re
import unicodedata
from collections.abc import Callable

__all__ = ["WordWrap"]

_MARKER = re.compile(r"\s*(?:(?:[-*+•>]|\d{1,3}[.)])\s+)*")
_FENCES = ("```", "~~~")
_TAB, _LEAST_COLUMNS, _PREFIX = 8, 10, 64


def _cells(char: str) -> int:
    """Columns that a character takes on a terminal."""
    if char.isascii():
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class WordWrap:
    """Breaks lines between words, for a terminal whose cursor is at the beginning of a line.

    A word that grows past the last column but one is erased and written again in the next line,
    below the text of its list item. Code in fences, rows of tables and words longer than a line are
    left to the terminal, so that they can be copied whole.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._is_code = False
        self._begin_line()

    def feed(self, text: str) -> str:
        """Return what the terminal must get to show the next piece of the text."""
        width = self._columns()
        if width < _LEAST_COLUMNS:
            return text
        return "".join(self._put(char, width) for char in text)

    def _begin_line(self) -> None:
        self._line = ""  # its first characters, without breaks
        self._column = 0
        self._word = ""  # since the last place to break
        self._word_column = 0

    def _put(self, char: str, width: int) -> str:
        if char == "\n":
            if self._line.lstrip().startswith(_FENCES):
                self._is_code = not self._is_code
            self._begin_line()
            return char
        if len(self._line) < _PREFIX:
            self._line += char
        if self._is_code or self._line.lstrip().startswith(("|", *_FENCES)):
            return char
        if char in " \t":
            return self._put_blank(char, width)
        cells = _cells(char)
        if cells == 2:
            self._end_word()
        broken = self._break(width - 1) if self._column + cells >= width else ""
        self._word += char
        self._column += cells
        if self._column > width:  # the terminal began a line
            self._column, self._word_column = cells, 0
        if cells == 2:
            self._end_word()
        return broken + char

    def _put_blank(self, char: str, width: int) -> str:
        cells = _TAB - self._column % _TAB if char == "\t" else 1
        if self._column + cells >= width:
            self._column = max(self._column, width - 1)  # the next word begins a line
            self._end_word()
            return ""  # nobody sees it at the end of a line
        self._column += cells
        self._end_word()
        return char

    def _end_word(self) -> None:
        self._word, self._word_column = "", self._column

    def _break(self, limit: int) -> str:
        """Move the word to the next line, unless it is the first one of its line."""
        marker = _MARKER.match(self._line)
        indent = min(len(marker.group()) if marker else 0, limit // 2)
        size = self._column - self._word_column
        if self._word_column <= indent or indent + size >= limit:
            return ""
        erased = f"\x1b[{size}D\x1b[K" if size else ""
        self._word_column, self._column = indent, indent + size
        return f"{erased}\n{' ' * indent}{self._word}"

"""Rows at the end of a terminal that change until they are final.

Only what differs is written, over what is there: nothing is erased first, so nothing flickers.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

__all__ = ["LEAST_COLUMNS", "LiveRows", "Row"]

LEAST_COLUMNS = 20  # of a terminal that word wrap and tables are for


class Row(NamedTuple):
    """Text of a row, styles included, and the columns that it takes.

    A row wider than the terminal is left to it to break, so that it can be copied whole.
    """

    text: str
    cells: int


class LiveRows:
    """Rows that end where the cursor is. Those above the screen cannot change any more."""

    def __init__(self, out: TextIO, size: Callable[[], os.terminal_size]) -> None:
        """size: of the terminal, as it is now."""
        self.size = size
        self._out = out
        self._rows: list[Row] = []

    def show(self, rows: Sequence[Row]) -> None:
        """Replace the rows."""
        old, self._rows = self._rows, list(rows)
        same = 0
        while same < min(len(old), len(rows)) and old[same] == rows[same]:
            same += 1
        if same == len(old) == len(rows):
            return
        if same == len(old):
            self._write(("\n" if old else "") + "\n".join(row.text for row in rows[same:]))
        elif same == len(old) - 1 < len(rows) and rows[same].text.startswith(old[same].text):
            longer = rows[same].text.removeprefix(old[same].text)
            self._write("\n".join([longer, *(row.text for row in rows[same + 1 :])]))
        else:
            self._overwrite(old, rows, same)

    def finish(self) -> None:
        """Leave the rows as they are, and begin a new line."""
        if self._rows:
            self._write("\n")
        self._rows = []

    def erase(self) -> None:
        """Remove the rows that the screen shows."""
        if self._rows:
            self._overwrite(self._rows, [], 0)
        self._rows = []

    def forget(self) -> None:
        """Begin anew: the cursor is no longer at the end of the rows."""
        self._rows = []

    def _overwrite(self, old: Sequence[Row], rows: Sequence[Row], at: int) -> None:
        """Write the rows from number `at` over the old ones."""
        columns, lines = self.size()
        heights = [_height(row, columns) for row in old]
        at = min(at, len(old) - 1)
        while sum(heights[at:]) > lines and at < len(old) - 1:
            at += 1
        up = sum(heights[at:]) - 1
        commands = [f"\x1b[{up}A\r" if up else "\r"]
        if sum(_height(row, columns) for row in rows[at:]) < up + 1:
            commands.append("\x1b[J")
        self._write("".join(commands) + "\n".join(_cleared(row, columns) for row in rows[at:]))

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _height(row: Row, columns: int) -> int:
    """Lines that a row takes, also if the terminal became narrower."""
    return max(1, -(-row.cells // columns))


def _cleared(row: Row, columns: int) -> str:
    """Text of a row, and a command to clear the rest of its last line unless that is full."""
    is_full = row.cells > 0 and row.cells % columns == 0
    return row.text if is_full else f"{row.text}\x1b[K"

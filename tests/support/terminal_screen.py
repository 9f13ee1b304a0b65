"""Emulation of a terminal's screen: where text and the few control sequences of the chat go."""

import io
import os
import re

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|.|\n", re.DOTALL)


def _cells(char: str) -> int:
    return 2 if "\u2e80" <= char <= "\uffdc" or char >= "\U0001f300" else 1


class TerminalScreen(io.StringIO):
    """Standard output of a program: cells of a screen, and the rows that have left it above."""

    def __init__(self, columns: int = 60, lines: int = 24) -> None:
        super().__init__()
        self.columns, self.lines = columns, lines
        self.above: list[str] = []
        self.num_erased = 0  # characters that were removed from the screen
        self._rows: list[list[str]] = [[]]
        self._x = self._y = 0

    def isatty(self) -> bool:
        return True

    @property
    def size(self) -> os.terminal_size:
        return os.terminal_size((self.columns, self.lines))

    @property
    def text(self) -> list[str]:
        """All rows, those above the screen too."""
        return [*self.above, *("".join(row).rstrip() for row in self._rows)]

    def write(self, text: str) -> int:
        for match in _TOKEN.finditer(text):
            if match[2]:
                self._control(match[2], match[1])
            elif not match[0].startswith("\x1b"):
                self._put(match[0])
        return super().write(text)

    def _put(self, char: str) -> None:
        if char == "\r":
            self._x = 0
        elif char == "\n":
            self._x = 0
            self._down()
        else:
            if self._x + _cells(char) > self.columns:
                self._x = 0
                self._down()
            row = self._rows[self._y]
            row += [" "] * (self._x - len(row))
            cells = [char, ""][: _cells(char)]
            row[self._x : self._x + len(cells)] = cells
            self._x += len(cells)

    def _down(self) -> None:
        self._y += 1
        if self._y == len(self._rows):
            self._rows.append([])
        if len(self._rows) > self.lines:
            self.above.append("".join(self._rows.pop(0)).rstrip())
            self._y -= 1

    def _control(self, name: str, arguments: str) -> None:
        match name:
            case "A":
                self._y = max(0, self._y - int(arguments or 1))
            case "K":
                self._erase(self._y)
            case "J":
                self._erase(self._y)
                for y in range(self._y + 1, len(self._rows)):
                    self.num_erased += len(self._rows[y])
                del self._rows[self._y + 1 :]
            case "m":
                pass
            case _:
                raise AssertionError(f"unexpected control sequence {name}")

    def _erase(self, y: int) -> None:
        row = self._rows[y]
        if self._x >= self.columns:  # as terminals do that wait to begin a line
            self._x = self.columns - 1
        self.num_erased += len(row[self._x :])
        del row[self._x :]

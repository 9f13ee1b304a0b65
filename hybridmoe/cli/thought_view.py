"""Thoughts on a terminal: dim while they stream, then one line in their place, or left open."""

import time

from hybridmoe.cli.duration import about
from hybridmoe.cli.live_rows import LEAST_COLUMNS, LiveRows, Row
from hybridmoe.cli.word_wrap import wrapped

__all__ = ["ThoughtView"]

_MAX_ROWS = 8


class ThoughtView:
    """The thoughts before one response. Folded ones show their last rows while they grow."""

    def __init__(self, live: LiveRows, *, folds: bool, use_color: bool) -> None:
        self._live = live
        self._folds = folds
        self._use_color = use_color
        self._line = ""  # the last row
        self._rows: list[Row] = []  # those above it, of folded thoughts
        self._num_tokens, self._started_s = 0, time.monotonic()

    def feed(self, text: str) -> None:
        """Add a token's text."""
        self._num_tokens += 1
        columns = max(self._live.size().columns, LEAST_COLUMNS)
        for i, part in enumerate(text.split("\n")):
            if i:
                self._keep([self._line])
                self._line = ""
            *full, self._line = wrapped(self._line + part, columns - 1)
            self._keep(full)
        self._live.show([*self._rows, self._row(self._line)])

    def end(self) -> str | None:
        """End the thoughts. Returns what stands in their place if they are folded."""
        if not self._folds:
            self._live.finish()
            return None
        self._live.erase()
        seconds = about(time.monotonic() - self._started_s)
        return f"thought for {seconds}, {self._num_tokens} tokens"

    def _keep(self, lines: list[str]) -> None:
        """Take rows that do not change any more."""
        rows = [self._row(line) for line in lines]
        if self._folds:
            most = max(2, min(_MAX_ROWS, self._live.size().lines // 2))
            self._rows = [*self._rows, *rows][1 - most :]
        elif rows:
            self._live.show(rows)
            self._live.finish()

    def _row(self, line: str) -> Row:
        from rich.cells import cell_len

        return Row(f"\x1b[2m{line}\x1b[0m" if self._use_color else line, cell_len(line))

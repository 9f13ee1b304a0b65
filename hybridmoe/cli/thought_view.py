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
        self._line = ""
        self._rows: list[Row] = []  # of earlier lines
        self._num_tokens, self._started_s = 0, time.monotonic()

    def feed(self, text: str) -> None:
        """Add a token's text."""
        self._num_tokens += 1
        for i, line in enumerate(text.split("\n")):
            if i:
                self._end_line()
            self._line += line
        self._show()

    def end(self) -> str | None:
        """End the thoughts. Returns what stands in their place if they are folded."""
        if not self._folds:
            self._live.finish()
            return None
        self._live.erase()
        seconds = about(time.monotonic() - self._started_s)
        return f"thought for {seconds}, {self._num_tokens} tokens"

    def _end_line(self) -> None:
        self._show()
        if self._folds:
            self._rows = self._latest()
        else:
            self._live.finish()
        self._line = ""

    def _show(self) -> None:
        self._live.show(self._latest())

    def _latest(self) -> list[Row]:
        from rich.cells import cell_len

        size = self._live.size()
        texts = wrapped(self._line, max(size.columns, LEAST_COLUMNS) - 1)
        rows = [*self._rows, *(Row(self._dim(text), cell_len(text)) for text in texts)]
        return rows[-max(1, min(_MAX_ROWS, size.lines // 2)) :] if self._folds else rows

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._use_color else text

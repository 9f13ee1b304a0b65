"""Markdown on a terminal as it streams: finished blocks stay, the last one is rendered anew."""

import re
import time

from hybridmoe.cli.live_rows import LEAST_COLUMNS, LiveRows, Row
from hybridmoe.cli.markdown_rows import Block, MarkdownRows

__all__ = ["MarkdownView"]

_SHARE, _CREDIT_S = 0.1, 0.05  # of the time, for rendering before the text is complete
# Characters at the end that may become marks, or a row of a table: shown once more is known.
_HELD = re.compile(
    r"(?:(?:\A|(?<=\n))[ ]{0,3}(?:[-=*_+#>~:`|\s]+|\d{1,3}[.)]?|\|[^\n]*)|[*_`~\[]{1,3})\Z"
)
_NO_ROW = Row("", 0)


class MarkdownView:
    """One text, shown as it grows."""

    def __init__(self, live: LiveRows, renderer: MarkdownRows) -> None:
        self._live = live
        self._renderer = renderer
        self._source = ""  # from the last block on
        self._is_first = True
        self._credit_s, self._updated_s = _CREDIT_S, time.monotonic()

    def feed(self, text: str) -> None:
        """Add to the text."""
        self._source += text
        now = time.monotonic()
        earned = (now - self._updated_s) * _SHARE
        self._credit_s, self._updated_s = min(self._credit_s + earned, _CREDIT_S), now
        if self._credit_s > 0.0:
            self._render(_HELD.sub("", self._source), is_complete=False)
            self._credit_s -= time.monotonic() - now

    def end(self) -> None:
        """Show all of the text, and begin a new line."""
        self._render(self._source, is_complete=True)

    def _render(self, source: str, *, is_complete: bool) -> None:
        blocks = self._renderer.blocks(source)
        final = blocks if is_complete else blocks[:-1]
        for block in final:
            self._show(block)
            self._live.finish()
            self._is_first = False
        if is_complete:
            self._source = ""
        elif blocks:
            cut = sum(len(line) + 1 for line in source.split("\n")[: blocks[-1].line])
            self._source = self._source[cut:]
            self._show(self._renderer.blocks(_closed(source[cut:]))[0], is_growing=True)

    def _show(self, block: Block, *, is_growing: bool = False) -> None:
        size = self._live.size()
        rows = self._renderer.rows(block, max(size.columns, LEAST_COLUMNS))
        if block.is_table and is_growing:
            rows = rows[: max(1, size.lines - 2)]  # a longer one may change its columns' widths
        self._live.show(rows if self._is_first else [_NO_ROW, *rows])


def _closed(source: str) -> str:
    """Close emphasis and code that are still open in the last line."""
    line = source.rpartition("\n")[2]
    if line.count("`") % 2:
        return f"{source}`"
    words = re.sub(r"`[^`]*`", "", line)
    for mark in ("**", "*"):
        parts = words.split(mark)
        if len(parts) % 2 == 0 and parts[-1][:1].strip():
            return source.rstrip() + mark
        words = words.replace(mark, "")
    return source

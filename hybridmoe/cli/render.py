"""Terminal output: safe text, Markdown and thoughts as they stream, and the statistics line."""

import os
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from hybridmoe.cli.live_rows import LEAST_COLUMNS, LiveRows
from hybridmoe.cli.thought_view import ThoughtView
from hybridmoe.cli.word_wrap import wrapped

if TYPE_CHECKING:
    from hybridmoe import Timing
    from hybridmoe.cli.markdown_view import MarkdownView
    from hybridmoe.experts.stats import ExpertStats

__all__ = ["Screen", "printable", "timing_line"]

# C0, DEL and C1 controls but newline and tab: escape sequences begin with one of them.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x0A, 0x09})


def printable(text: str) -> str:
    """Remove control characters, by which a model could steer the terminal."""
    return text.translate(_CONTROLS)


def timing_line(timing: "Timing", experts: "ExpertStats | None" = None) -> str:
    """Format the statistics line below a response.

    experts: counts of the response alone; None without an expert cache.
    """
    found = ""
    if experts is not None and any(experts.found.values()):
        found = f" | experts {experts.shares}"
        if "disk" in experts.found:
            found += f", {experts.bytes_read / 1e9:.2f} GB read, {experts.read_wait_s:.2f} s waited"
    from_disk = f", {timing.disk_tokens} from disk" if timing.disk_tokens else ""
    cached = f" ({timing.cached_tokens} cached{from_disk})" if timing.cached_tokens else ""
    drafts = ""
    if timing.draft_tokens:
        drafts = f" ({timing.accepted_tokens} of {timing.draft_tokens} drafts accepted)"
    return (
        f"prompt {timing.prompt_tokens} tok{cached} {timing.prompt_tokens_per_s:.0f} t/s"
        f" | gen {timing.generated_tokens} tok {timing.decode_tokens_per_s:.1f} t/s{drafts}"
        f" | ttft {timing.prompt_s:.{1 if timing.prompt_s >= 1 else 2}f} s{found}"
    )


class Screen:
    """Standard output; for a terminal, without control characters."""

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        use_color: bool = True,
        is_plain: bool = True,
        folds_thoughts: bool = True,
        size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
    ) -> None:
        """is_plain: show responses as they are written; else, on a terminal that is not dumb, as
        Markdown. folds_thoughts: then put one line, which ends with `fold_hint`, in their place.
        """
        self._out = sys.stdout if out is None else out
        self.is_terminal = self._out.isatty()
        self.use_color = use_color and self.is_terminal and not os.environ.get("NO_COLOR")
        is_dumb = not self.is_terminal or os.environ.get("TERM") in ("dumb", "unknown")
        self._is_plain = is_plain or is_dumb
        self.folds_thoughts, self.fold_hint = folds_thoughts, ""
        self._live = LiveRows(self._out, size)
        self._view: MarkdownView | ThoughtView | None = None
        self._is_line_open = False
        self._is_thinking = False

    def write(self, text: str, *, is_reasoning: bool = False) -> None:
        """Show a piece of a response at once; reasoning dim, and on a terminal only."""
        if self.is_terminal:
            text = printable(text)
        elif is_reasoning:
            return
        if is_reasoning != self._is_thinking:
            self._turn(is_reasoning)
        if text and (view := self._open_view()) is not None:
            view.feed(text)
        elif text:
            is_dim = is_reasoning and self.use_color
            self._out.write(f"\x1b[2m{text}\x1b[0m" if is_dim else text)
            self._out.flush()
            self._is_line_open = not text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line unless one has just begun; a response ends here."""
        self._is_thinking = False
        view, self._view = self._view, None
        if view is not None:
            folded = view.end()
            if folded is not None:
                self.note(folded + self.fold_hint)
        elif self._is_line_open:
            self._out.write("\n")
            self._out.flush()
        self._is_line_open = False

    def forget_position(self) -> None:
        """Write below what others have written: a shell, while the program was stopped."""
        self._live.forget()

    def copy(self, text: str) -> None:
        """Ask the terminal to put a text into the clipboard (OSC 52)."""
        if self.is_terminal:
            encoded = b64encode(text.encode("utf-8", "replace")).decode()
            self._out.write(f"\x1b]52;c;{encoded}\x07")
            self._out.flush()

    def note(self, text: str) -> None:
        """Print lines about the conversation, dim."""
        self.end_line()
        text = printable(text)
        columns = self._live.size().columns
        if not self._is_plain and columns >= LEAST_COLUMNS:
            lines = text.split("\n")
            text = "\n".join(row for line in lines for row in wrapped(line, columns - 1))
        self._out.write(f"\x1b[2m{text}\x1b[0m\n" if self.use_color else f"{text}\n")
        self._out.flush()

    def _turn(self, is_thinking: bool) -> None:
        """Begin a line where reasoning ends; without colors, mark where it begins."""
        if not is_thinking or not self._is_plain:
            self.end_line()
        elif not self.use_color:
            self.note("(thinking)")
        self._is_thinking = is_thinking

    def _open_view(self) -> "MarkdownView | ThoughtView | None":
        """Return the view of this text; None if it is shown as it is written."""
        if self._view is not None or self._is_plain or self._is_line_open:
            return self._view
        if self._live.size().columns < LEAST_COLUMNS:
            return None
        if self._is_thinking:
            self._view = ThoughtView(
                self._live, folds=self.folds_thoughts, use_color=self.use_color
            )
        else:
            from hybridmoe.cli.markdown_rows import MarkdownRows  # takes 0.1 s
            from hybridmoe.cli.markdown_view import MarkdownView

            self._view = MarkdownView(self._live, MarkdownRows(use_color=self.use_color))
        return self._view

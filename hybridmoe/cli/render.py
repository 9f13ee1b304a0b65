"""Terminal output: safe text, and the statistics line."""

import os
import shutil
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, TextIO

from hybridmoe.cli.word_wrap import WordWrap

if TYPE_CHECKING:
    from hybridmoe import Timing
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


def _num_columns() -> int:
    return shutil.get_terminal_size().columns


class Screen:
    """Standard output; for a terminal, without control characters.

    wraps: break lines between words, on a terminal that is neither dumb nor without colors.
    """

    def __init__(
        self, out: TextIO | None = None, *, use_color: bool = True, wraps: bool = False
    ) -> None:
        self._out = sys.stdout if out is None else out
        self.is_terminal = self._out.isatty()
        self._use_color = use_color and self.is_terminal and not os.environ.get("NO_COLOR")
        self._wraps = wraps and self._use_color and os.environ.get("TERM") != "dumb"
        self._wrap = WordWrap(_num_columns)
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
        if text:
            is_dim = is_reasoning and self._use_color
            shown = self._wrap.feed(text) if self._wraps else text
            self._out.write(f"\x1b[2m{shown}\x1b[0m" if is_dim else shown)
            self._out.flush()
            self._is_line_open = not text.endswith("\n")

    def _turn(self, is_thinking: bool) -> None:
        """Begin a line where reasoning ends; without colors, mark where it begins."""
        if not is_thinking:
            self.end_line()
        elif not self._use_color:
            self.note("(thinking)")
        self._is_thinking = is_thinking

    def end_line(self) -> None:
        """Begin a new line unless one has just begun."""
        self._is_thinking = False
        if self._is_line_open:
            self.write("\n")
        self._wrap = WordWrap(_num_columns)

    def copy(self, text: str) -> None:
        """Ask the terminal to put a text into the clipboard (OSC 52)."""
        if self.is_terminal:
            encoded = b64encode(text.encode("utf-8", "replace")).decode()
            self._out.write(f"\x1b]52;c;{encoded}\x07")
            self._out.flush()

    def note(self, text: str) -> None:
        """Print a line about the conversation, dim."""
        self.end_line()
        text = printable(text)
        self._out.write(f"\x1b[2m{text}\x1b[0m\n" if self._use_color else f"{text}\n")
        self._out.flush()

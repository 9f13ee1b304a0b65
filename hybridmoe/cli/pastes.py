"""Long pastes in the chat's prompt: a placeholder on the screen stands for the text.

prompt_toolkit shows nothing at all of a line that is taller than the screen.
"""

import re

__all__ = ["Pastes"]

_MAX_LETTERS, _MAX_LINES = 1000, 10
_PLACEHOLDER = re.compile(r"\[paste (\d+): [\d,]+ characters, \d+ lines?\]")


class Pastes:
    """Texts behind the placeholders of one chat."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def fold(self, text: str) -> str:
        """Return what to show of a pasted text: a placeholder if it is long, else the text."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        num_lines = text.count("\n") + 1
        if len(text) <= _MAX_LETTERS and num_lines <= _MAX_LINES:
            return text
        self._texts.append(text)
        lines = f"{num_lines} line{'s' * (num_lines > 1)}"
        return f"[paste {len(self._texts)}: {len(text):,} characters, {lines}]"

    def unfold(self, shown: str) -> str:
        """Put the texts in the place of their placeholders; others stay as they are."""
        return _PLACEHOLDER.sub(self._text, shown)

    def has_placeholder(self, shown: str) -> bool:
        """True if a text would be lost with this chat."""
        return self.unfold(shown) != shown

    def _text(self, match: re.Match[str]) -> str:
        number = int(match[1])
        return self._texts[number - 1] if 1 <= number <= len(self._texts) else match[0]

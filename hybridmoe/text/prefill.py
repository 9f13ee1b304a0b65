"""Continuation of the assistant's last message: what of it is written behind the prompt.

The prompt is rendered without that message, and the message written behind its generation prompt,
as the model would have written it. So its text is kept to the last space, whatever a template
strips. Method: llama.cpp's server; `continue_final_message` is Hugging Face's name for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridmoe.errors import ConfigError

__all__ = ["Prefill", "ThoughtMarks", "split_prefill"]

_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHT, _TEXT = "zqthought", "zqtext"  # in samples
_MAX_MARK = 32  # characters of a mark with its white space
_FIELD = "continue_final_message"


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """Texts before and after thoughts, with their white space."""

    open: str = _OPEN
    close: str = _CLOSE

    @classmethod
    def sample(cls) -> dict[str, str]:
        """Make the assistant's message whose rendered text `of` reads."""
        return {"role": "assistant", "content": _TEXT, "reasoning_content": _THOUGHT}

    @classmethod
    def of(cls, rendered: str) -> "ThoughtMarks":
        """Read the marks around a sample; the bare ones where the template drops thoughts."""
        before, _, after = rendered.partition(_THOUGHT)
        start = before.rfind(_OPEN)
        close, is_whole, _ = after.partition(_TEXT)
        opening = before[start:] if start >= 0 else ""
        if not (is_whole and opening and close.count(_CLOSE) == 1 and len(close) <= _MAX_MARK):
            return cls()
        return cls(opening if len(opening) <= _MAX_MARK else _OPEN, close)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Thoughts and text that the assistant has begun; one of them is not empty."""

    thoughts: str
    content: str

    @property
    def is_thinking(self) -> bool:
        """True if the continuation is inside thoughts."""
        return not self.content or self.content.rfind(_OPEN) > self.content.rfind(_CLOSE)

    def after(self, prompt: str, marks: ThoughtMarks) -> str:
        """Write it behind a rendered prompt, which may have opened or closed the thoughts.

        Errors: ConfigError for thoughts to go on where the prompt has closed them.
        """
        end = prompt.rstrip()
        is_open, is_closed = end.endswith(_OPEN), end.endswith(_CLOSE)
        if is_closed and not self.content:
            raise ConfigError(
                f"{_FIELD}: the last message has thoughts alone, and thinking is off: turn it on"
            )
        if is_closed or not (self.thoughts or is_open):
            return self.content
        opening = "" if is_open else marks.open
        return opening + self.thoughts + (marks.close + self.content if self.content else "")


def split_prefill(
    messages: list[dict[str, Any]], continues: bool | None
) -> tuple[list[dict[str, Any]], Prefill | None]:
    """Split off the assistant's last message, if it is to be continued.

    continues: None = if it has text or thoughts, and no tool calls. An empty one is dropped: its
    continuation is a response. Errors: ConfigError for a message that cannot be continued.
    """
    last = messages[-1]
    if continues is False:
        return messages, None
    is_assistant = last["role"] == "assistant"
    if not is_assistant or "tool_calls" in last or len(messages) == 1:
        if continues is None:
            return messages, None
        what = f"is of role {last['role']!r:.40}"
        if is_assistant:
            what = "has tool calls" if "tool_calls" in last else "is the only one"
        raise ConfigError(
            f"{_FIELD}: the last message {what}; expected an assistant's text behind a question"
        )
    prefill = _of_message(last)
    return messages[:-1], prefill if prefill.thoughts or prefill.content else None


def _of_message(message: Mapping[str, Any]) -> Prefill:
    content = message["content"] or ""
    given = message.get("reasoning_content") or message.get("reasoning")
    thoughts = given if isinstance(given, str) else ""
    if not thoughts and content.lstrip().startswith(_OPEN):
        thoughts, _, content = content.lstrip().removeprefix(_OPEN).partition(_CLOSE)
    return Prefill(thoughts, content)

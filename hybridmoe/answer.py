"""One answer: its text pieces while they come, its result once it has ended.

Turns generated ids into shown text: whole characters only, cut at stop strings, tool calls kept
apart. Knows the engine's events and the tokenizer; not how a prompt was made.
"""

import collections.abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from hybridmoe.engine.request import Usage
from hybridmoe.text.call_names import SECTION_BEGIN
from hybridmoe.text.stop_strings import StopFilter
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_calls import split_tool_calls

__all__ = ["Answer", "Result", "ResultStream", "Timing"]

PieceStream = collections.abc.Generator[str, None, None]


@dataclass(frozen=True, slots=True)
class Timing:
    """What one answer cost. Times in seconds."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed again
    prompt_s: float
    generated_tokens: int
    decode_s: float  # first generated token to the last

    @property
    def prompt_tokens_per_s(self) -> float:
        return _rate(self.prompt_tokens - self.cached_tokens, self.prompt_s)

    @property
    def decode_tokens_per_s(self) -> float:
        return _rate(self.generated_tokens - 1, self.decode_s)


@dataclass(frozen=True, slots=True)
class Result:
    """One answer."""

    text: str
    token_ids: list[int]  # every generated id but the end token
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled"]
    timing: Timing
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class ResultStream:
    """Iterates over an answer's text pieces; `result` holds the whole once it has ended."""

    def __init__(
        self, pieces: PieceStream, finish: Callable[[], Result], cancel: Callable[[], None]
    ) -> None:
        self._pieces = pieces
        self._finish = finish
        self._cancel = cancel
        self._result: Result | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Result:
        """The answer so far, with `finish_reason` "cancelled" where it was cut short."""
        if self._result is None:
            self.close()
            self._result = self._finish()
        return self._result

    def close(self) -> None:
        """Stop generating, at once."""
        self._cancel()  # a generator that never began does not clean up when it is closed
        self._pieces.close()


class Answer:
    """Turns generated ids into shown text as they are pushed, and into a `Result` at the end."""

    def __init__(self, stop: Sequence[str], tokenizer: Tokenizer, *, may_call: bool) -> None:
        """may_call: tool calls are taken out of the text and parsed (chat), not shown (raw)."""
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream()
        self._stops = StopFilter(stop)
        self._may_call = may_call
        self._section_begin = {tokenizer.special_id(text) for text in SECTION_BEGIN if may_call}
        self._is_hidden = False  # inside tool calls: for `result`, not for the eye
        self.token_ids: list[int] = []
        self._shown: list[str] = []

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string has come: nothing after it is shown, and nothing more is needed."""
        return self._stops.has_stopped

    def push(self, token_id: int) -> str:
        """The text that this token makes visible; often none."""
        self.token_ids.append(token_id)
        self._is_hidden = self._is_hidden or token_id in self._section_begin
        return "" if self._is_hidden else self._show(self._stops.push(self._decoder.push(token_id)))

    def flush(self) -> str:
        """What was held back, once no token follows."""
        if self.has_stopped:
            return ""
        return self._show(self._stops.push(self._decoder.flush()) + self._stops.flush())

    def _show(self, piece: str) -> str:
        if piece:
            self._shown.append(piece)
        return piece

    def result(self, reason: str | None, usage: Usage) -> Result:
        """The answer so far. reason: the engine's, or None where the caller ended it."""
        calls = split_tool_calls(self.token_ids, self._tokenizer)[1] if self._may_call else []
        reason = "stop" if self.has_stopped else reason or "cancelled"
        timing = Timing(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            prompt_s=usage.prompt_s,
            generated_tokens=usage.generated_tokens,
            decode_s=usage.decode_s,
        )
        return Result(
            text="".join(self._shown),
            token_ids=self.token_ids,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,  # type: ignore[arg-type]
            timing=timing,
            tool_calls=calls,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 and count > 0 else 0.0

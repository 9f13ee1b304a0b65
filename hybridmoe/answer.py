"""One answer: its text pieces while they come, its result once it has ended.

Turns generated ids into shown text: whole characters only, cut at stop strings, tool calls kept
apart. Knows the engine's record and the tokenizer; not how a prompt was made.
"""

import collections.abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from hybridmoe.engine.generator import Generation, TokenStream
from hybridmoe.engine.sampler import SamplingParams
from hybridmoe.text.stop_strings import StopFilter
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_calls import SECTION_BEGIN, split_tool_calls

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

    def __init__(self, pieces: PieceStream, finish: Callable[[], Result]) -> None:
        self._pieces = pieces
        self._finish = finish
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
        self._pieces.close()


class Answer:
    """Turns generated ids into shown text, and into a `Result` at the end."""

    def __init__(
        self,
        token_ids: TokenStream,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        may_call: bool,
    ) -> None:
        """may_call: tool calls are taken out of the text and parsed (chat), not shown (raw)."""
        self._token_ids = token_ids
        self._tokenizer = tokenizer
        self._stops = StopFilter(params.stop)
        self._may_call = may_call
        self._section_begin = {tokenizer.special_id(text) for text in SECTION_BEGIN if may_call}
        self._ids: list[int] = []
        self._shown: list[str] = []

    def pieces(self) -> PieceStream:
        try:
            for piece in self._raw_pieces():
                if piece:
                    self._shown.append(piece)
                    yield piece
        finally:
            self._token_ids.close()

    def _raw_pieces(self) -> Iterator[str]:
        decoder = self._tokenizer.stream()
        is_hidden = False  # inside tool calls: for `result`, not for the eye
        for token_id in self._token_ids:
            self._ids.append(token_id)
            is_hidden = is_hidden or token_id in self._section_begin
            if not is_hidden:
                yield self._stops.push(decoder.push(token_id))
            if self._stops.has_stopped:
                return
        yield self._stops.push(decoder.flush())
        yield self._stops.flush()

    def result(self, record: Generation) -> Result:
        calls = split_tool_calls(self._ids, self._tokenizer)[1] if self._may_call else []
        reason = "stop" if self._stops.has_stopped else record.finish_reason or "cancelled"
        timing = Timing(
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            prompt_s=record.prompt_s,
            generated_tokens=record.generated_tokens,
            decode_s=record.decode_s,
        )
        return Result(
            text="".join(self._shown),
            token_ids=self._ids,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,  # type: ignore[arg-type]
            timing=timing,
            tool_calls=calls,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 and count > 0 else 0.0

"""Results of the Python API: streamed pieces, then the whole response with its timing."""

import collections.abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from hybridmoe.engine.request import Usage
from hybridmoe.text.response import FinishReason, Response
from hybridmoe.text.response_parser import Part, ReasoningPart, TextPart

__all__ = ["Piece", "PieceStream", "Result", "ResultStream", "Timing", "pieces_of"]


class Piece(NamedTuple):
    """Characters of a response's text, or of its reasoning."""

    text: str
    is_reasoning: bool


PieceStream = collections.abc.Generator[Piece, None, None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Token counts and times of one response. Times in seconds."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed again
    prompt_s: float
    generated_tokens: int
    decode_s: float  # first generated token to the last
    disk_tokens: int = 0  # of the cached ones, read from disk
    draft_tokens: int = 0  # proposed by speculative decoding
    accepted_tokens: int = 0  # of these, drawn by the model itself

    @property
    def prompt_tokens_per_s(self) -> float:
        return _rate(self.prompt_tokens - self.cached_tokens, self.prompt_s)

    @property
    def decode_tokens_per_s(self) -> float:
        return _rate(self.generated_tokens - 1, self.decode_s)

    @classmethod
    def of_usage(cls, usage: Usage) -> Self:
        """Take a request's figures from the engine."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            disk_tokens=usage.disk_tokens,
            prompt_s=usage.prompt_s,
            generated_tokens=usage.generated_tokens,
            decode_s=usage.decode_s,
            draft_tokens=usage.draft_tokens,
            accepted_tokens=usage.accepted_tokens,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """Response of `LLM.chat` or `LLM.generate`."""

    text: str
    token_ids: list[int]  # every generated id but the end token
    finish_reason: FinishReason
    timing: Timing
    tool_calls: list[dict[str, Any]] = field(default_factory=list)  # as OpenAI's API has them
    reasoning: str = ""  # between `<think>` and `</think>`; not in `text`

    @classmethod
    def of_response(cls, response: Response, token_ids: Sequence[int], usage: Usage) -> Self:
        """Take what is generated so far; "cancelled" if the response is unfinished."""
        return cls(
            text=response.text,
            token_ids=list(token_ids),
            finish_reason=response.finish_reason or "cancelled",
            timing=Timing.of_usage(usage),
            tool_calls=[call.to_openai() for call in response.complete_tool_calls],
            reasoning=response.reasoning,
        )


class ResultStream:
    """Iterator over a response's text; `result` holds the whole once it has ended.

    Reasoning is not part of the text: `pieces` yields it too.
    """

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
        return next(piece.text for piece in self._pieces if not piece.is_reasoning)

    def pieces(self) -> Iterator[Piece]:
        """Iterate over the rest of the response, reasoning included."""
        return self._pieces

    @property
    def result(self) -> Result:
        """The response so far; ends an unfinished one, with `finish_reason` "cancelled"."""
        if self._result is None:
            self.close()
            self._result = self._finish()
        return self._result

    def close(self) -> None:
        """Stop generating, at once."""
        self._cancel()  # a generator that never began does not clean up when it is closed
        self._pieces.close()


def pieces_of(parts: Iterable[Part]) -> list[Piece]:
    """Convert a parser's text and reasoning parts to pieces."""
    return [
        Piece(part.text, isinstance(part, ReasoningPart))
        for part in parts
        if isinstance(part, TextPart | ReasoningPart)
    ]


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 and count > 0 else 0.0

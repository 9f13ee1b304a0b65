"""One answer: its pieces while they come, its result once it has ended.

Collects what text/answer_parts.py makes of generated ids, the parser of the endpoint too: text cut
at stop strings, thoughts and tool calls apart. Not how a prompt was made.
"""

import collections.abc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from hybridmoe.engine.request import Usage
from hybridmoe.text.response_parser import (
    ArgumentsPart,
    CallStart,
    Part,
    ReasoningPart,
    ResponseParser,
    TextPart,
)

__all__ = ["Answer", "Piece", "Result", "ResultStream", "Timing"]


class Piece(NamedTuple):
    """Some characters of an answer, or of the thoughts before it."""

    text: str
    is_thought: bool


PieceStream = collections.abc.Generator[Piece, None, None]


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
    reasoning: str = ""  # what was thought before the text


class ResultStream:
    """Iterates over an answer's text pieces; `result` holds the whole once it has ended.

    Thoughts are no text: `pieces` has them too.
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
        return next(piece.text for piece in self._pieces if not piece.is_thought)

    def pieces(self) -> Iterator[Piece]:
        """The rest of the answer, thoughts included."""
        return self._pieces

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
    """Turns generated ids into shown pieces as they are pushed, and into a `Result` at the end."""

    def __init__(self, parts: ResponseParser, first_call: int = 0) -> None:
        """first_call: how many calls the conversation has so far, which ids go on from."""
        self._parts = parts
        self._first_call = first_call
        self._shown: list[Piece] = []
        self._calls: list[dict[str, Any]] = []
        self.token_ids: list[int] = []

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string has come: nothing after it is shown, and nothing more is needed."""
        return self._parts.has_stopped

    def push(self, token_id: int) -> list[Piece]:
        """Text that this token makes visible; often none."""
        self.token_ids.append(token_id)
        return self._take(self._parts.push(token_id))

    def flush(self) -> list[Piece]:
        """What was held back, once no token follows."""
        return self._take(self._parts.finish())

    def _take(self, parts: list[Part]) -> list[Piece]:
        pieces = []
        for part in parts:
            if isinstance(part, TextPart | ReasoningPart):
                pieces.append(Piece(part.text, isinstance(part, ReasoningPart)))
            elif isinstance(part, CallStart):
                call_id = f"functions.{part.name}:{self._first_call + part.index}"
                function = {"name": part.name, "arguments": ""}
                self._calls.append({"id": call_id, "type": "function", "function": function})
            elif isinstance(part, ArgumentsPart):
                self._calls[-1]["function"]["arguments"] += part.text
        self._shown += pieces
        return pieces

    def result(self, reason: str | None, usage: Usage) -> Result:
        """The answer so far. reason: the engine's, or None where the caller ended it."""
        reason = "stop" if self.has_stopped else reason or "cancelled"
        calls = self._calls
        if reason != "stop" and calls and not _is_json(calls[-1]["function"]["arguments"]):
            calls = calls[:-1]  # cut off: nothing that could be called
        timing = Timing(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            prompt_s=usage.prompt_s,
            generated_tokens=usage.generated_tokens,
            decode_s=usage.decode_s,
        )
        return Result(
            text="".join(piece.text for piece in self._shown if not piece.is_thought),
            token_ids=self.token_ids,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,  # type: ignore[arg-type]
            timing=timing,
            tool_calls=calls,
            reasoning="".join(piece.text for piece in self._shown if piece.is_thought),
        )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 and count > 0 else 0.0

"""What the APIs' answers have in common: a whole answer's pieces, usage, log-probabilities."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import Response

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.run import Delta, Ended, Run, TokenLogprob, Update
from hybridmoe.serve.service import Service
from hybridmoe.text.response_parser import ArgumentsPart, CallStart, ReasoningPart, TextPart
from hybridmoe.text.tokenizer import Tokenizer

__all__ = [
    "Call",
    "Collected",
    "chat_logprobs",
    "finite",
    "new_call_id",
    "refuse",
    "reply_whole",
    "service_of",
    "token_text",
    "usage",
]

_LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON lacks


@dataclass(slots=True)
class Call:
    """A tool call of an answer."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Collected:
    """One choice, as far as it has come."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    experts: list[list[list[int]]] = field(default_factory=list)
    end: Ended | None = None

    def add(self, update: Update) -> None:
        """Take in what happened to this choice."""
        if isinstance(update, Ended):
            self.end = update
        elif isinstance(update, Delta):
            self.logprobs += update.logprobs
            self.experts += update.experts
            for part in update.parts:
                if isinstance(part, TextPart):
                    self.text += part.text
                elif isinstance(part, ReasoningPart):
                    self.reasoning += part.text
                elif isinstance(part, CallStart):
                    self.calls.append(Call(new_call_id(), part.name))
                elif isinstance(part, ArgumentsPart):
                    self.calls[-1].arguments += part.text

    @classmethod
    async def of_run(cls, run: Run) -> "list[Collected]":
        """All choices of a run, whole."""
        choices = [cls() for _ in range(run.num_choices)]
        async for update in run.updates():
            if isinstance(update, Delta | Ended):
                choices[update.choice].add(update)
        return choices


def service_of(request: Request) -> Service:
    """The app's service."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def new_call_id() -> str:
    """A tool call's id: unique, of letters, digits, "_" and "-" alone, since clients check both.

    The model's own form, `functions.NAME:N`, stays between it and text/messages.py.
    """
    return f"call_{uuid.uuid4().hex[:24]}"


def usage(run: Run) -> dict[str, Any]:
    """OpenAI's token counts of a run that has ended."""
    return {
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "total_tokens": run.prompt_tokens + run.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": run.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": run.reasoning_tokens},
    }


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities as chat answers have them."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(token_id, tokenizer),
            "logprob": finite(logprob),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    return [
        {**one(e.token_id, e.logprob), "top_logprobs": [one(i, value) for i, value in e.top]}
        for e in entries
    ]


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """One token by itself; U+FFFD where it is a part of a character."""
    return tokenizer.decode([token_id], skip_special=False)


def finite(logprob: float) -> float:
    """A number that JSON has."""
    return max(logprob, _LEAST_LOGPROB)


async def reply_whole(run: Run, make: Callable[[list[Collected]], Response]) -> Response:
    """The response made of the whole run, which ends with it: this is cancelled when the client
    leaves.
    """
    try:
        return make(await Collected.of_run(run))
    finally:
        run.cancel()


def refuse(param: str, message: str) -> ApiError:
    """A 400 for a value that is understood and not supported."""
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_value")

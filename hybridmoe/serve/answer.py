"""What the APIs' answers have in common: a whole answer's pieces, usage, log-probabilities."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.run import Choice, Run, TokenLogprob
from hybridmoe.serve.service import Service
from hybridmoe.text.tokenizer import Tokenizer

__all__ = [
    "chat_logprobs",
    "finite",
    "refuse",
    "reply_whole",
    "service_of",
    "token_text",
    "usage",
]

_LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON lacks


def service_of(request: Request) -> Service:
    """The app's service."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


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


async def reply_whole(run: Run, make: Callable[[list[Choice]], Response]) -> Response:
    """The response made of the whole run, which ends with it: this is cancelled when the client
    leaves.
    """
    try:
        async for _ in run.updates():
            pass
        return make(run.choices)
    finally:
        run.cancel()


def refuse(param: str, message: str) -> ApiError:
    """A 400 for a value that is understood and not supported."""
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_value")

"""What the OpenAPI document says of answers, in one place."""

from typing import Any

from pydantic import BaseModel

from hybridmoe.serve.schemas.tokens import ErrorAnswer

__all__ = ["ERRORS", "stream_or"]

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request is not valid, asks for what is not supported, or exceeds the context.",
    401: "The API key is missing or wrong.",
    403: "The Host header is not allowed.",
    404: "The model is not served here, or the response not stored.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The engine failed.",
    503: "The model is not loaded yet, its card has failed, or the server is too busy or ends.",
}

ERRORS: Responses = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _MEANINGS.items()
}
# FastAPI documents its own form of a validation error, which is a 400 here.
ERRORS[422] = {"model": ErrorAnswer, "description": "Not used: such requests get 400."}


def stream_or(answer: type[BaseModel]) -> Responses:
    """A whole answer, or server-sent events where `stream` is true."""
    content = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"model": answer, "content": content, "description": "The answer."}}

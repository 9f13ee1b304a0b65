"""Responses in the OpenAPI document that several routes share."""

from typing import Any

from pydantic import BaseModel

from hybridmoe.serve.schemas.server import ErrorResponse

__all__ = ["ERRORS", "Responses", "json_or_stream"]

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request is invalid or unsupported, or its prompt exceeds the context.",
    401: "The API key is missing or wrong.",
    403: "The Host header is not allowed.",
    404: "The model is not served here, or the response is not stored.",
    408: "The body did not arrive in time.",
    413: "The body is too large, as sent or when decompressed.",
    415: "The Content-Type is not JSON, or the Content-Encoding is unknown.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The engine failed.",
    503: "The model is loading, its GPU has failed, or the server is overloaded or shutting down.",
}

ERRORS: Responses = {
    status: {"model": ErrorResponse, "description": text} for status, text in _MEANINGS.items()
}
# FastAPI documents its own form of a validation error, which is a 400 here.
ERRORS[422] = {"model": ErrorResponse, "description": "Not used: invalid requests get 400."}


def json_or_stream(response: type[BaseModel]) -> Responses:
    """Document a JSON response, or server-sent events if `stream` is true."""
    content = {"text/event-stream": {"schema": {"type": "string"}}}
    description = "The response, or server-sent events if `stream` is true."
    return {200: {"model": response, "content": content, "description": description}}

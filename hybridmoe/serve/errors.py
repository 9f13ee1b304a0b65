"""Error responses in OpenAI's shape, Anthropic's below /v1/messages, or ollama's below /api.

    {"error": {"message", "type", "param", "code"}}
    {"type": "error", "error": {"type", "message"}}
    {"error": "message"}

They never hold a traceback. An error that is not the client's fault is a 5xx with one line, and is
logged.
"""

import logging
from collections.abc import Mapping
from typing import Any

from hybridmoe.errors import (
    ClusterError,
    ConfigError,
    ContextLengthError,
    DeviceError,
    HybridMoeError,
    QueueFullError,
    TemplateError,
)
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.work_pool import CancelledWorkError

__all__ = [
    "ApiError", "as_api_error", "error_body", "error_response", "unsupported_value",
]  # fmt: skip

_log = logging.getLogger(__name__)

_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    503: "overloaded_error",
}  # fmt: skip


class ApiError(HybridMoeError):
    """Refusal of a request, with the status and fields of its HTTP response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})  # further fields of the error object


def unsupported_value(param: str, message: str) -> ApiError:
    """Make a 400 for a value that is understood but not supported."""
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_value")


def as_api_error(error: Exception, retry_after_s: int = 1) -> ApiError:
    """Convert any exception to an error response."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return _too_long(error)
    if isinstance(error, DeviceError):
        return ApiError(503, str(error), type="server_error", code="device_failed")
    if isinstance(error, ClusterError):
        return ApiError(
            503,
            str(error),
            type="server_error",
            code="host_away",
            headers={"Retry-After": str(retry_after_s)},
        )
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            f"{error}; try again in {retry_after_s} s",
            type="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(retry_after_s)},
        )
    if isinstance(error, CancelledWorkError):
        return ApiError(
            503,
            str(error),
            type="server_error",
            code="overloaded",
            headers={"Retry-After": str(retry_after_s)},
        )
    if isinstance(error, ConfigError | TemplateError):
        return ApiError(400, str(error))
    _log.error("a request failed", exc_info=error)
    return ApiError(500, f"internal error: {type(error).__name__}", type="server_error")


def _too_long(error: ContextLengthError) -> ApiError:
    """Use the phrases at which agents shorten their conversation; each agent has its own."""
    num_prompt_tokens, context_tokens = error.num_prompt_tokens, error.context_tokens
    return ApiError(
        400,
        f"This model's maximum context length is {context_tokens} tokens. The prompt"
        f" {error.has}, which exceeds the available context size: shorten it."
        f" (prompt is too long: {num_prompt_tokens} tokens > {context_tokens} maximum)",
        param="messages",
        code="context_length_exceeded",
        extra={"n_prompt_tokens": num_prompt_tokens, "n_ctx": context_tokens},
    )


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """Make the JSON of an error, in the shape of the path's API."""
    message = str(error)
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(error.status)
        kind = kind or ("api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message, **error.extra}}
    if path.startswith("/api/"):
        return {"error": message}
    fields = {"message": message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": {**fields, **error.extra}}


def error_response(error: ApiError, path: str) -> CompactJSONResponse:
    """Make the HTTP response of an error."""
    return CompactJSONResponse(error_body(error, path), error.status, error.headers)

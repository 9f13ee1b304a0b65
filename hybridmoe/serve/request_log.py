"""Record of each HTTP request, and its line in the log.

Path, status, model, tokens, times and id; never any text of prompts or responses.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve.prefix_log import PrefixLog
from hybridmoe.serve.request_record import RequestRecord

__all__ = ["RequestLogMiddleware", "json_line", "text_line"]

_POLLED = frozenset({"/health", "/ready", "/metrics"})  # by supervisors, which tell of 503
_MOST_CHARS = 200  # of a path
_LEFT = 499  # the client left before a response began


class RequestLogMiddleware:
    """Begins the record of each request, and reports it when its response has ended.

    Around the checks of access, so that it sees refusals too.
    """

    def __init__(
        self,
        app: ASGIApp,
        report: Callable[[Mapping[str, Any]], None] | None,
        prefixes: PrefixLog | None = None,
    ) -> None:
        """report: gets the fields of the line, in the event loop; None: none are logged.

        prefixes: reports the request's prompts.
        """
        self._app = app
        self._report = report
        self._prefixes = prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _LEFT

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with RequestRecord.begun() as record:
            try:
                await self._app(scope, receive, send_noted)
            finally:
                path = _shown(scope)
                is_polled = path in _POLLED and status in (200, 503)
                request_id = scope.get("state", {}).get("request_id")
                if self._prefixes is not None:
                    for generation in record.generations:
                        self._prefixes.report(_printable(str(request_id or path)), generation)
                if self._report is not None and not is_polled:
                    fields = {"method": scope["method"], "path": path, "status": status}
                    own = {} if request_id is None else {"request_id": request_id}
                    self._report({**fields, **record.fields(), **own})


def text_line(fields: Mapping[str, Any]) -> str:
    """Format a request for people."""
    parts = [f"{fields['method']} {fields['path']} {fields['status']}"]
    if "model" in fields:
        parts[0] += f" {fields['model']}"
    if "prompt_tokens" in fields:
        parts.append(
            f"{fields['prompt_tokens']} tokens ({fields['cached_tokens']} cached)"
            f" + {fields['completion_tokens']} at {fields['tokens_per_s']:.1f}/s"
            f" ({fields['finish_reason']})"
        )
    if fields.get("queue_s"):
        parts.append(f"queued {fields['queue_s']:.2f} s")
    parts.append(f"{fields['total_s']:.2f} s")
    if "request_id" in fields:
        parts.append(_printable(str(fields["request_id"])))
    return ", ".join(parts)


def json_line(fields: Mapping[str, Any]) -> str:
    """Format fields as one line of JSON."""
    return json.dumps(fields, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _shown(scope: Scope) -> str:
    """Path as it was sent: without its query, and encoded, so that it stays in its line."""
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return _printable(raw.partition(b"?")[0].decode("latin-1"))


def _printable(text: str) -> str:
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:_MOST_CHARS])
    return shown or "-"

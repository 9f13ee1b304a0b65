"""Streams whose model is still being loaded: comments keep their connections alive meanwhile.

A route responds once its generation has started. Where that takes long, this middleware begins the
event stream before it; what the route then sends goes on in it, and an error becomes an event.
"""

import asyncio
import contextlib
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve.event_stream import (
    DONE,
    KEEP_ALIVE,
    LINE_KEEP_ALIVE,
    data_event,
    named_event,
)
from hybridmoe.serve.request_record import RequestRecord

__all__ = ["HeldStreamMiddleware", "error_event"]

_OLLAMA = "/api/"  # streams of JSON lines, which may begin with spaces
_LLAMA_SERVER = ("/completion", "/completions")  # its own stream, which has no [DONE]
_ERROR_EVENT = {"type": "error", "sequence_number": 0}  # of Responses
_EVENTS, _LINES = b"text/event-stream; charset=utf-8", b"application/x-ndjson"
_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class HeldStreamMiddleware:
    """Begins the responses of requests that wait for a model and want a stream."""

    def __init__(self, app: ASGIApp, keep_alive_s: float) -> None:
        self._app = app
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(scope["path"], send)
        fillers: list[asyncio.Task[None]] = []
        record = RequestRecord.of_context()

        def on_wait() -> None:
            if record.is_stream and not fillers:
                fillers.append(asyncio.create_task(response.fill(self._keep_alive_s)))

        record.on_wait = on_wait
        try:
            await self._app(scope, receive, response.send)
        finally:
            for filler in fillers:
                filler.cancel()
            await asyncio.gather(*fillers, return_exceptions=True)


class _Response:
    """A response that may begin before its route's."""

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._is_lines = path.startswith(_OLLAMA)
        self._send = send
        self._has_begun = False  # by the route
        self._is_early = False  # begun before it
        self._error: bytearray | None = None  # the route's response, if it is one

    async def fill(self, keep_alive_s: float) -> None:
        """Send a comment after each `keep_alive_s`, until the route responds."""
        while True:
            await asyncio.sleep(keep_alive_s)
            if self._has_begun:
                return
            if not self._is_early:
                self._is_early = True
                kind = (b"content-type", _LINES if self._is_lines else _EVENTS)
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": [kind, *_HEADERS]}
                )
            with contextlib.suppress(OSError):  # the client has left, which the route learns
                await self._send(
                    _body(LINE_KEEP_ALIVE if self._is_lines else KEEP_ALIVE, more=True)
                )

    async def send(self, message: Message) -> None:
        """Pass on what the route sends; in a stream that has begun, without a second start."""
        if message["type"] == "http.response.start":
            self._has_begun = True
            if self._is_early and message["status"] >= 400:
                self._error = bytearray()
            if self._is_early:
                return
        elif self._error is not None:
            self._error += message.get("body", b"")
            if message.get("more_body", False):
                return
            message = _body(error_event(self._path, bytes(self._error)), more=False)
        await self._send(message)


def error_event(path: str, body: bytes) -> bytes:
    """Make the event of an error response, in the form of the path's API. body: of the response."""
    if not body:  # the client has left
        return b""
    if path.startswith(_OLLAMA):
        return body + b"\n"
    error = json.loads(body)
    if path in _LLAMA_SERVER:
        return data_event(error)
    if path.startswith("/v1/messages"):
        return named_event("error", error)
    if path.startswith("/v1/responses"):
        return named_event("error", {"type": "error"} | error["error"] | _ERROR_EVENT)
    return data_event(error) + DONE


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}

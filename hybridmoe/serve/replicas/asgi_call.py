"""Call of an ASGI application without a connection: a request in, the messages of its response out.

Both cross to another process: a request holds only what can be pickled.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

__all__ = ["ForwardedRequest", "call_app", "forwarded"]

_SCOPE_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
    "root_path", "client", "server",
)  # fmt: skip
_FRAMING = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"expect"})


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request with its whole body, and where it should go."""

    scope: dict[str, Any]
    body: bytes
    wanted: tuple[str, ...] = ()  # replicas by their tags, the best one first
    is_bound: bool = False  # only the first of them will do


def forwarded(scope: Scope, body: bytes, request_id: str) -> ForwardedRequest:
    """Make a request of its scope and the body as it was decoded."""
    kept = {key: scope[key] for key in _SCOPE_KEYS if key in scope}
    dropped = _FRAMING | {b"x-request-id"}
    headers = [(name, value) for name, value in scope["headers"] if name not in dropped]
    headers.append((b"x-request-id", request_id.encode()))
    if body:
        headers.append((b"content-length", b"%d" % len(body)))
    return ForwardedRequest({**kept, "headers": headers}, body)


async def call_app(app: ASGIApp, request: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
    """Call an application. Yields what it sends: all messages that have come meanwhile at a time.

    Where the caller leaves early, the application sees a disconnected client.
    """
    sent: list[Message] = []
    news, has_left = asyncio.Event(), asyncio.Event()
    body: bytes | None = request.body

    async def receive() -> Message:
        nonlocal body
        if body is not None:
            piece, body = body, None
            return {"type": "http.request", "body": piece, "more_body": False}
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        news.set()

    async def run() -> None:
        await app({**request.scope, "state": {}}, receive, send)

    task = asyncio.create_task(run())
    task.add_done_callback(lambda _: news.set())
    try:
        while sent or not task.done():
            if sent:
                messages, sent = sent, []
                yield messages
            else:
                news.clear()
                await news.wait()
        await task
    finally:
        has_left.set()
        await _ended(task)


async def _ended(task: asyncio.Task[None]) -> None:
    """Await the application's end; it may have failed, which its caller has been told."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await asyncio.shield(task)

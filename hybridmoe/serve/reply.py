"""JSON answers and event streams as bytes; the stream ends when its reader leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

__all__ = [
    "DONE",
    "KEEP_ALIVE",
    "EventStream",
    "JsonReply",
    "as_json",
    "data_event",
    "named_event",
    "while_connected",
]

KEEP_ALIVE = b": keep-alive\n\n"
# Line ends of Unicode, by which some clients (httpx) cut an event in two.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
DONE = b"data: [DONE]\n\n"


def as_json(value: Any) -> bytes:
    """Compact UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return text.encode("utf-8", "replace")


def data_event(value: Any) -> bytes:
    """One event of OpenAI's streams."""
    return b"data: " + as_json(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """One event of streams that name their events."""
    return b"event: " + name.encode() + b"\ndata: " + as_json(value) + b"\n\n"


class JsonReply(JSONResponse):
    """`JSONResponse` with this module's encoding."""

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return as_json(content)


class EventStream(Response):
    """Sends events as they come, and `keep_alive` where none came for `keep_alive_s`: proxies cut
    a connection that is silent, whatever is computed behind it. `on_end` runs however it ends, a
    client that left included.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        on_end: Callable[[], None],
        keep_alive_s: float,
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._keep_alive_s = keep_alive_s
        self._keep_alive = keep_alive
        self._sent_s = 0.0  # when the last byte was, by the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _first_of(self._send(send), _disconnected(receive))
        except OSError:
            pass  # the connection broke while something was sent
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._sent_s = asyncio.get_running_loop().time()
        filler = asyncio.create_task(self._fill_silence(send))
        try:
            async for event in self._events:
                await self._write(send, event)
        finally:
            filler.cancel()
            await asyncio.gather(filler, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fill_silence(self, send: Send) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            if (left_s := self._sent_s + self._keep_alive_s - now_s()) > 0.0:
                await asyncio.sleep(left_s)
            else:
                await self._write(send, self._keep_alive)

    async def _write(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent_s = asyncio.get_running_loop().time()


async def while_connected(request: Request, work: Awaitable[Response]) -> Response:
    """The response that `work` makes; when the client leaves first, `work` is cancelled."""
    response = await _first_of(work, _disconnected(request.receive))
    return response if isinstance(response, Response) else Response(status_code=499)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(*works: Awaitable[Any]) -> Any:
    """The result of the one that ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

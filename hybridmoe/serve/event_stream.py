"""Server-sent events, and work that is cancelled when its client disconnects."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hybridmoe.serve.json_response import encode_json

__all__ = [
    "DONE",
    "KEEP_ALIVE",
    "LINE_KEEP_ALIVE",
    "EventStreamResponse",
    "cancel_on_disconnect",
    "data_event",
    "named_event",
    "until_disconnect",
]

KEEP_ALIVE = b": keep-alive\n\n"
LINE_KEEP_ALIVE = b" "  # in a stream of JSON lines, which have no comments
DONE = b"data: [DONE]\n\n"


def data_event(value: Any) -> bytes:
    """Encode an event without a name, as in OpenAI's streams."""
    return b"data: " + encode_json(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """Encode an event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + encode_json(value) + b"\n\n"


class EventStreamResponse(Response):
    """Streams events, and what `keep_alive` returns after each `keep_alive_s` without one.

    Proxies cut a connection that is silent, even while a prompt is computed. `on_end` runs however
    the stream ends, also when the client disconnects.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        on_end: Callable[[], None],
        keep_alive_s: float,
        keep_alive: Callable[[], bytes] = lambda: KEEP_ALIVE,
        media_type: str = "text/event-stream",
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._keep_alive_s = keep_alive_s
        self._keep_alive = keep_alive
        self._last_sent_s = 0.0  # by the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(self._send(send), receive)
        except OSError:
            pass  # the connection broke during a send
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._last_sent_s = asyncio.get_running_loop().time()
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
            if (left_s := self._last_sent_s + self._keep_alive_s - now_s()) > 0.0:
                await asyncio.sleep(left_s)
            else:
                await self._write(send, self._keep_alive())

    async def _write(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._last_sent_s = asyncio.get_running_loop().time()


async def cancel_on_disconnect(request: Request, work: Awaitable[Response]) -> Response:
    """Await the response of `work`; cancel `work` if the client disconnects first."""
    response = await until_disconnect(work, request.receive)
    return response if isinstance(response, Response) else Response(status_code=499)


async def until_disconnect(work: Awaitable[Any], receive: Receive) -> Any:
    """Await the result of `work`; cancel it, and return None, if the client disconnects first."""
    return await _first_of(work, _disconnected(receive))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(*works: Awaitable[Any]) -> Any:
    """Await the first result, and cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

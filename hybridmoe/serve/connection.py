"""HTTP connections of uvicorn, with limits on the time and number of idle ones.

A connection without a request under way (none yet, half a head, or between two) costs a file
descriptor and a little memory. Without limits, a thousand of them would shut out other clients.
A client that does not read its response would keep its model loaded, and another one waiting.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hybridmoe.serve.errors import ApiError, error_body
from hybridmoe.serve.json_response import encode_json

__all__ = ["Connection", "WarningRateLimit"]

_PERIOD_S = 60.0
_NO_REQUEST = "this is not an HTTP/1.1 request that can be read (https is not spoken here)"


class Connection(H11Protocol):
    """Protocol that closes on a late request head, or to make room for a new connection.

    It is cut if its client does not read.
    """

    head_timeout_s = 20.0  # from the connection, or a head's first byte, to its last
    read_timeout_s = 120.0  # of a client: to take what a full buffer holds

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self.idle_since_s = 0.0  # by the loop's clock

    @property
    def is_idle(self) -> bool:
        """True while no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to await a head. Close the longest idle connection above the limit."""
        super().connection_made(transport)
        self._await_head()
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        # Connections being closed are still listed: do not close one for each of them again.
        left = [
            one
            for one in self.connections
            if isinstance(one, Connection) and not one.transport.is_closing()
        ]
        if len(left) < self.limit_concurrency:
            return
        idle = min(
            (one for one in left if one.is_idle), key=lambda one: (one is self, one.idle_since_s)
        )
        if idle is not self:  # else all others are busy, and uvicorn refuses a request with 503
            idle.close_idle()

    def data_received(self, data: bytes) -> None:
        """Start the head's timer at its first byte, and stop it at its last."""
        super().data_received(data)
        if not self.is_idle:
            self._forget_head()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """Become idle again; uvicorn's own, longer timer runs until the next byte."""
        self.idle_since_s = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the client's timer: the buffer is full."""
        super().pause_writing()
        self._forget_read()
        self._read_timer = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the client's timer: it has read."""
        self._forget_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, in OpenAI's form."""
        body = encode_json(error_body(ApiError(400, _NO_REQUEST), ""))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        response = h11.Response(status_code=400, headers=[*headers.items()], reason="Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Not uvicorn's, which says what to install."""
        self.logger.warning("a client has asked for a WebSocket, which this server has not")

    def close_idle(self) -> None:
        """Close the connection, unless a request has arrived meanwhile."""
        self._forget_head()
        if self.is_idle:
            self.timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self.idle_since_s = self.loop.time()
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.close_idle)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_read(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class WarningRateLimit(logging.Filter):
    """Log filter that passes one warning of a kind per minute: clients can cause any number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[str, tuple[float, int]] = {}  # last passed, number dropped since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        kind = str(record.msg)
        passed_s, count = self._kinds.get(kind, (-_PERIOD_S, 0))
        now_s = self._now()
        if now_s - passed_s < _PERIOD_S:
            self._kinds[kind] = (passed_s, count + 1)
            return False
        self._kinds[kind] = (now_s, 0)
        if count:
            record.msg = f"{kind} ({count} more since the last such line)"
        return True

    def reset(self) -> None:
        """Forget the warnings passed so far."""
        self._kinds.clear()

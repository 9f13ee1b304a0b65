"""HTTP connections: uvicorn's, with bounds on how long, and how many, may do nothing.

A connection without a request under way (none yet, half a head, or between two) costs a descriptor
and a little memory; without bounds, a thousand of them shut everyone else out.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection", "FewWarnings"]

_PAUSE_S = 60.0


class Connection(H11Protocol):
    """Is closed when a head is not whole in time, or when others need the place."""

    head_s = 20.0  # from the connection, or a head's first byte, to its last

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        """True while no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await a head; the connection that has been idle for longest makes room for this one."""
        super().connection_made(transport)
        self._await_head()
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        # Of many that come at once, each finds those that the others have closed still here.
        left = [
            one
            for one in self.connections
            if isinstance(one, Connection) and not one.transport.is_closing()
        ]
        if len(left) < self.limit_concurrency:
            return
        idle = min(
            (one for one in left if one.is_idle), key=lambda one: (one is self, one._idle_since)
        )
        if idle is not self:  # all others are at work: uvicorn refuses a request with 503
            idle.close_idle()

    def data_received(self, data: bytes) -> None:
        """A part of a head may begin its time, the last one ends it."""
        super().data_received(data)
        if not self.is_idle:
            self._forget_head()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """Idle again; uvicorn's own, longer time runs until the next byte."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def close_idle(self) -> None:
        """End the connection, unless a request has come meanwhile."""
        self._forget_head()
        if self.is_idle:
            self.timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self._idle_since = self.loop.time()
        self._head_timer = self.loop.call_later(self.head_s, self.close_idle)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class FewWarnings(logging.Filter):
    """Lets one warning of a kind through in a while: clients make as many as they like."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[str, tuple[float, int]] = {}  # when last told, how many not told since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        kind = str(record.msg)
        told_s, count = self._kinds.get(kind, (-_PAUSE_S, 0))
        now_s = self._now()
        if now_s - told_s < _PAUSE_S:
            self._kinds[kind] = (told_s, count + 1)
            return False
        self._kinds[kind] = (now_s, 0)
        if count:
            record.msg = f"{kind} ({count} more since the last such line)"
        return True

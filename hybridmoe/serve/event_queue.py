"""Queue from the engine's thread into an event loop."""

import asyncio
import contextlib
import time
from collections import deque

from hybridmoe.engine.request import Event, Listener

__all__ = ["EventQueue"]


class EventQueue:
    """FIFO queue of engine events, with one reader in an event loop.

    Unbounded: a sequence has a bounded number of tokens.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[float, int, Event]] = deque()
        self._is_notified = False
        self._has_events = asyncio.Event()
        self._failure: Exception | None = None

    def listener(self, index: int) -> Listener:
        """Make the engine's listener for choice `index`."""

        def put(event: Event) -> None:
            self._events.append((time.perf_counter(), index, event))
            if not self._is_notified:  # one call into the loop serves all events before it runs
                self._is_notified = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: no reader is left
                    self._loop.call_soon_threadsafe(self._notify)

        return put

    def _notify(self) -> None:
        self._is_notified = False
        self._has_events.set()

    def fail(self, error: Exception) -> None:
        """Raise `error` at the reader in place of further events. From the reader's loop only."""
        self._failure = error
        self._has_events.set()

    async def get(self) -> tuple[float, int, Event]:
        """Await the next event. Returns its arrival time, its choice and the event."""
        while not self._events and self._failure is None:
            self._has_events.clear()
            await self._has_events.wait()
        if self._failure is not None:
            raise self._failure
        return self._events.popleft()

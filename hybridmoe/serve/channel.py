"""From the engine's thread into an event loop."""

import asyncio
import contextlib
import time
from collections import deque

from hybridmoe.engine.request import Event, Listener

__all__ = ["Channel"]


class Channel:
    """From the engine's thread to one reader in an event loop; in order, and without bound:
    a sequence ends by itself.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[float, int, Event]] = deque()
        self._is_notified = False
        self._has_events = asyncio.Event()
        self._failure: Exception | None = None

    def listener(self, index: int) -> Listener:
        """What an engine calls with the events of choice `index`."""

        def put(event: Event) -> None:
            self._events.append((time.perf_counter(), index, event))
            if not self._is_notified:  # one call into the loop serves all that came before it ran
                self._is_notified = True
                with contextlib.suppress(RuntimeError):  # a closed loop: nobody reads any more
                    self._loop.call_soon_threadsafe(self._notify)

        return put

    def _notify(self) -> None:
        self._is_notified = False
        self._has_events.set()

    def fail(self, error: Exception) -> None:
        """Raise this at the reader instead of what may still come. The reader's loop only."""
        self._failure = error
        self._has_events.set()

    async def get(self) -> tuple[float, int, Event]:
        """The next event: when it came, of which choice, and what it is."""
        while not self._events and self._failure is None:
            self._has_events.clear()
            await self._has_events.wait()
        if self._failure is not None:
            raise self._failure
        return self._events.popleft()

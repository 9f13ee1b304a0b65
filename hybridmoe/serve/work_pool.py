"""Thread pool for work before the engine's queue: parsing, templates, tokenization, grammars.

asyncio's own pool has an unbounded queue, does not cancel work whose client has disconnected, and
is joined at exit. This pool has a bounded queue and cancels work on disconnect or at a deadline.
One thread is reserved for short work, so that long work does not delay it.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from hybridmoe.errors import HybridMoeError, QueueFullError

__all__ = ["CancelToken", "CancelledWorkError", "WorkPool"]

T = TypeVar("T")


class CancelledWorkError(HybridMoeError):
    """Work was cancelled, or took too long."""


class CancelToken:
    """Cancellation flag and deadline, polled by the work itself."""

    def __init__(self, deadline_s: float) -> None:
        self._limit_s = deadline_s
        self._deadline = float("inf")
        self._is_cancelled = False

    def start(self) -> None:
        """Start the clock of the deadline."""
        self._deadline = time.monotonic() + self._limit_s

    def cancel(self) -> None:
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """True once the work is cancelled or past its deadline."""
        return self._is_cancelled or time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raise CancelledWorkError if the work is to end."""
        if self._is_cancelled:
            raise CancelledWorkError("the request was cancelled")
        if self.is_cancelled:
            raise CancelledWorkError(f"the request took more than {self._limit_s:g} s to prepare")


class _Work:
    def __init__(self, function: Callable[[CancelToken], Any], deadline_s: float) -> None:
        self.function = function
        self.token = CancelToken(deadline_s)
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def run(self) -> None:
        """Run in a thread of the pool."""
        self.token.start()
        try:
            result = self.function(self.token)
        except BaseException as error:
            self.fail(error)
        else:
            self._settle(self.future.set_result, result)

    def fail(self, error: BaseException) -> None:
        """Fail the work, unless it is done. Thread-safe."""
        if isinstance(error, StopIteration):  # no future accepts it
            error = RuntimeError(repr(error))
        self._settle(self.future.set_exception, error)

    def _settle(self, set_outcome: Callable[[Any], None], value: Any) -> None:
        def settle_once() -> None:
            if not self.future.done():
                set_outcome(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: no waiter is left
            self._loop.call_soon_threadsafe(settle_once)


class WorkPool:
    """Threads, started on first use, and a bounded queue in front of them."""

    def __init__(self, num_threads: int, max_waiting: int, deadline_s: float) -> None:
        """num_threads: 2 or more, one of them for short work only."""
        assert num_threads >= 2, num_threads
        self.num_threads = num_threads
        self._max_waiting = max_waiting
        self._deadline_s = deadline_s
        self._threads: list[threading.Thread] = []
        self._short: deque[_Work] = deque()
        self._long: deque[_Work] = deque()
        self._running: set[_Work] = set()
        self._changed = threading.Condition()
        self._closing_error: Callable[[], Exception] | None = None

    async def run(self, function: Callable[[CancelToken], T], *, is_short: bool = False) -> T:
        """Run the function in a thread and return its result. Cancelling this cancels the work.

        Errors: those of the function; QueueFullError; that of `close`.
        """
        work = _Work(function, self._deadline_s)
        queue = self._short if is_short else self._long
        with self._changed:
            if self._closing_error is not None:
                raise self._closing_error()
            if len(queue) >= self._max_waiting:
                raise QueueFullError(f"the queue is full: {len(queue)} requests are to be prepared")
            queue.append(work)
            self._start_threads()
            self._changed.notify_all()
        try:
            result: T = await work.future
            return result
        finally:
            work.token.cancel()
            with self._changed:
                if work in queue:
                    queue.remove(work)

    def close(self, error: Callable[[], Exception]) -> None:
        """Close the pool: fail queued, running and later work with the error."""
        with self._changed:
            self._closing_error = error
            for work in (*self._short, *self._long, *self._running):
                work.token.cancel()
                work.fail(error())
            self._short.clear()
            self._long.clear()
            self._changed.notify_all()

    def _start_threads(self) -> None:
        while len(self._threads) < self.num_threads:
            is_reserved = not self._threads  # for short work
            thread = threading.Thread(
                target=self._serve, args=(is_reserved,), name="hybridmoe-prepare", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, is_reserved: bool) -> None:
        queues = (self._short,) if is_reserved else (self._short, self._long)
        while (work := self._take(queues)) is not None:
            work.run()
            with self._changed:
                self._running.discard(work)
            del work  # or the model that it used would live until the next one comes

    def _take(self, queues: tuple[deque[_Work], ...]) -> _Work | None:
        """Await the next work; None once the pool is closed."""
        with self._changed:
            while self._closing_error is None:
                queue = next(filter(None, queues), None)
                if queue is not None:
                    work = queue.popleft()
                    self._running.add(work)
                    return work
                self._changed.wait()
        return None

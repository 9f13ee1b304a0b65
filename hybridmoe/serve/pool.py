"""Threads for what takes a while before the engine's queue: parsing, templates, tokens, grammars.

asyncio's own pool bounds nothing that waits, ends nothing that nobody wants any more, and is
waited for when the process ends. Here the queue is bounded, work is told when its client has left
or its time is over, and one thread is kept for short work, which long work would hold up.
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
    """Work is not wanted any more, or took too long."""


class CancelToken:
    """Tells a piece of work, which looks at it again and again, that it is to end."""

    def __init__(self, deadline_s: float) -> None:
        self._limit_s = deadline_s
        self._deadline = float("inf")
        self._is_cancelled = False

    def start(self) -> None:
        """The work begins: its time runs from now."""
        self._deadline = time.monotonic() + self._limit_s

    def cancel(self) -> None:
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """True once the work is to end, be it unwanted or late."""
        return self._is_cancelled or time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raise CancelledWorkError where the work is to end."""
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

    def do(self) -> None:
        """In a thread of the pool."""
        self.token.start()
        try:
            result = self.function(self.token)
        except BaseException as error:
            self.fail(error)
        else:
            self._tell(self.future.set_result, result)

    def fail(self, error: BaseException) -> None:
        """From any thread; what is over already stays as it is."""
        if isinstance(error, StopIteration):  # which no future takes
            error = RuntimeError(repr(error))
        self._tell(self.future.set_exception, error)

    def _tell(self, tell: Callable[[Any], None], value: Any) -> None:
        def tell_once() -> None:
            if not self.future.done():
                tell(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(tell_once)


class WorkPool:
    """A few threads, started as they are needed, and a bounded queue in front of them."""

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
        self._ending: Callable[[], Exception] | None = None

    async def run(self, function: Callable[[CancelToken], T], *, is_short: bool = False) -> T:
        """Run the function in a thread and return its result. Cancelling this cancels the work.

        Errors, besides: QueueFullError where as much waits as may; that of `close`.
        """
        work = _Work(function, self._deadline_s)
        queue = self._short if is_short else self._long
        with self._changed:
            if self._ending is not None:
                raise self._ending()
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
        """End: whoever waits for work gets the error now, and so does whoever brings more."""
        with self._changed:
            self._ending = error
            for work in (*self._short, *self._long, *self._running):
                work.token.cancel()
                work.fail(error())
            self._short.clear()
            self._long.clear()
            self._changed.notify_all()

    def _start_threads(self) -> None:
        while len(self._threads) < self.num_threads:
            is_kept = not self._threads  # for short work
            thread = threading.Thread(
                target=self._serve, args=(is_kept,), name="hybridmoe-prepare", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, is_kept: bool) -> None:
        queues = (self._short,) if is_kept else (self._short, self._long)
        while (work := self._take(queues)) is not None:
            work.do()
            with self._changed:
                self._running.discard(work)

    def _take(self, queues: tuple[deque[_Work], ...]) -> _Work | None:
        """The next work; None at the end."""
        with self._changed:
            while self._ending is None:
                queue = next(filter(None, queues), None)
                if queue is not None:
                    work = queue.popleft()
                    self._running.add(work)
                    return work
                self._changed.wait()
        return None

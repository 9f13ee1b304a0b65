"""A thread that computes masks, and another one in its place where a mask takes long.

What is computed cannot be interrupted: it is native code over a client's grammar. So a thread that
is late ends with what it does, and the masks that wait behind it are the next thread's. All are
daemons: a process that ends does not wait for a mask.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

__all__ = ["MaskThread", "PendingMask"]

Mask = NDArray[np.uint32] | None  # None: the constraint is fulfilled
_MAX_LATE = 4  # threads that are late at the same time; beyond, masks wait


class PendingMask:
    """A mask that is being computed, or waits for that."""

    def __init__(self, compute: Callable[[], Mask]) -> None:
        self._compute = compute
        self._future: Future[Mask] = Future()
        self._began_s: float | None = None

    @property
    def is_ready(self) -> bool:
        return self._future.done()

    @property
    def took_s(self) -> float:
        """Seconds since its computation began."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    def wait(self, timeout_s: float) -> None:
        """Wait until it is ready, but not for longer."""
        with contextlib.suppress(TimeoutError):
            self._future.exception(timeout_s)

    def result(self) -> Mask:
        """The mask, waited for. Errors: the constraint's."""
        return self._future.result()

    def call_when_ready(self, function: Callable[[], None]) -> None:
        """Call from the thread that computes it; at once where it is ready."""
        self._future.add_done_callback(lambda _: function())

    def run(self) -> None:
        """Compute it, in this thread."""
        self._began_s = time.monotonic()
        try:
            mask = self._compute()
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(mask)


class MaskThread:
    """Computes masks one after another. Belongs to one thread, the engine's."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[PendingMask | None] = SimpleQueue()
        self._thread: threading.Thread | None = None  # made for the first mask
        self._late: list[threading.Thread] = []

    def submit(self, compute: Callable[[], Mask]) -> PendingMask:
        """Compute a mask, behind those that wait already."""
        pending = PendingMask(compute)
        self._queue.put(pending)
        if self._thread is None:
            self._start()
        return pending

    def note_late(self) -> None:
        """Let what waits not wait for what is being computed."""
        self._late = [thread for thread in self._late if thread.is_alive()]
        if self._thread is not None and len(self._late) < _MAX_LATE:
            self._late.append(self._thread)
            self._start()

    def close(self) -> None:
        """End the threads, when they have done what they do; nothing is submitted any more."""
        for _ in (self._thread, *self._late):
            self._queue.put(None)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="hybridmoe-masks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (pending := self._queue.get()) is not None:
            pending.run()
            if threading.current_thread() in self._late:
                return

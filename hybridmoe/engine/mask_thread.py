"""A thread that computes masks, replaced by another one while a mask takes long.

Native code over a client's grammar cannot be interrupted. So a late thread finishes its mask and
ends, and a new thread takes over the queue. All are daemons: the process does not wait for a mask.
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
_MAX_LATE = 4  # late threads at the same time; beyond, masks wait


class PendingMask:
    """A mask that is queued or being computed."""

    def __init__(self, compute: Callable[[], Mask]) -> None:
        self._compute = compute
        self._future: Future[Mask] = Future()
        self._started_at: float | None = None

    @property
    def is_ready(self) -> bool:
        return self._future.done()

    @property
    def elapsed_s(self) -> float:
        """Seconds since its computation started; 0 in the queue."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    def wait(self, timeout_s: float) -> None:
        """Wait until it is ready, but not longer."""
        with contextlib.suppress(TimeoutError):
            self._future.exception(timeout_s)

    def result(self) -> Mask:
        """Wait for the mask and return it. Errors: the constraint's."""
        return self._future.result()

    def call_when_ready(self, function: Callable[[], None]) -> None:
        """Call a function from the thread that computes it, or at once if it is ready."""
        self._future.add_done_callback(lambda _: function())

    def run(self) -> None:
        """Compute it in the calling thread."""
        self._started_at = time.monotonic()
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
        self._thread: threading.Thread | None = None  # started for the first mask
        self._late: list[threading.Thread] = []

    def submit(self, compute: Callable[[], Mask]) -> PendingMask:
        """Queue a mask."""
        pending = PendingMask(compute)
        self._queue.put(pending)
        if self._thread is None:
            self._start()
        return pending

    def replace_late(self) -> None:
        """Replace the thread, which is late, so that queued masks do not wait for its mask."""
        self._late = [thread for thread in self._late if thread.is_alive()]
        if self._thread is not None and len(self._late) < _MAX_LATE:
            self._late.append(self._thread)
            self._start()

    def close(self) -> None:
        """End the threads after their current masks. Nothing may be submitted afterwards."""
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

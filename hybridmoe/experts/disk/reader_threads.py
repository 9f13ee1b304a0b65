"""Threads that serve a read queue: io_uring's, replaced by plain ones if it fails in a run.

A read may never return: a disk that hangs, a network that is gone. So nothing here waits for one
without end; memory that may still be written to is then kept, and files stay open.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from hybridmoe import _C
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_backends import (
    ReadBackend,
    RequestedRange,
    read_by_ring,
    read_by_thread,
)
from hybridmoe.experts.disk.read_queue import ReadQueue

__all__ = ["CLOSE_S", "ReaderThreads"]

CLOSE_S = 3.0  # for the reads under way when a model is closed

_log = logging.getLogger(__name__)
_kept: list[object] = []  # what a read that never returned may still write to


class ReaderThreads:
    """Running threads. Does not refer to the FileReader, which may be dropped."""

    def __init__(
        self,
        queue: ReadQueue,
        files: Sequence[DirectFile],
        backend: ReadBackend,
        num_threads: int,
    ) -> None:
        """num_threads: without io_uring. The files are closed with this."""
        self._queue, self._files, self._ring = queue, files, backend.ring
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._is_abandoned = False
        self.description = backend.describe(num_threads)  # for users
        if backend.ring is not None:
            self._start("ring", self._run_ring, backend.ring)
        else:
            self._start_plain(num_threads)

    def close(self) -> None:
        """End the threads and close the files. Reads that hang are waited for `CLOSE_S`."""
        self._queue.close()
        until = time.monotonic() + 2 * CLOSE_S  # the ring's thread itself waits for CLOSE_S
        for thread in self._threads:  # grows if io_uring fails now
            thread.join(max(0.0, until - time.monotonic()))
        is_hanging = any(thread.is_alive() for thread in self._threads)
        if is_hanging or self._is_abandoned:
            _log.warning(
                "hybridmoe: %s: the disk has not returned reads for %g s; closed without them",
                self._files[0].name,
                CLOSE_S,
            )
        if is_hanging:
            _kept.append(self)  # files stay open: another could get their numbers
            return
        if self._ring is not None:
            self._ring.close()
        for file in self._files:
            file.close()

    def _start_plain(self, count: int) -> None:
        for i in range(count):
            self._start(str(i), read_by_thread, self._queue, self._files)

    def _start(self, name: str, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, name=f"hybridmoe-read-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run_ring(self, ring: _C.IoRing) -> None:
        """Read by io_uring; if it fails, plain threads go on with what it has not finished."""
        in_flight: dict[int, RequestedRange] = {}
        reason = read_by_ring(self._queue, self._files, ring, in_flight)
        while not ring.drain(CLOSE_S):  # until then the kernel writes to these buffers
            if self._queue.is_closed:
                self._is_abandoned = True
                _kept.append(in_flight)
                return
        if reason is None:
            return
        self._queue.put_back(list(in_flight.values()))
        self.description = f"{self._num_threads} threads (io_uring failed: {reason})"
        _log.warning("hybridmoe: io_uring failed (%s): experts are read by threads", reason)
        self._start_plain(self._num_threads)

"""Background reads of file ranges into memory, past the page cache."""

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from hybridmoe import _C
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_backends import (
    NUM_THREADS,
    choose_read_backend,
    read_by_ring,
    read_by_thread,
)
from hybridmoe.experts.disk.read_queue import ReadQueue, ReadRequest

__all__ = ["FileReader"]


class FileReader:
    """Reads requests in order of submission, urgent ones first. Must be closed."""

    def __init__(self, paths: Sequence[Path], *, num_threads: int = NUM_THREADS) -> None:
        """Open the files. num_threads: without io_uring.

        Errors: DiskError; ConfigError if `HYBRIDMOE_IO` asks for a backend that is missing.
        """
        self._files: list[DirectFile] = []
        try:
            for path in paths:
                self._files.append(DirectFile(path))
            backend = choose_read_backend(is_direct=self.is_direct)
        except BaseException:
            _close_files(self._files)
            raise
        ring = backend.ring
        self.backend = backend.describe(num_threads)  # for users
        self._queue = ReadQueue(ring.wake if ring is not None else None)
        threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _close, self._queue, self._files, threads, ring)
        for i in range(num_threads if ring is None else 1):
            run, args = read_by_thread, (self._queue, self._files)
            threads.append(
                threading.Thread(
                    target=run if ring is None else read_by_ring,
                    args=args if ring is None else (*args, ring),
                    name=f"hybridmoe-read-{i}",
                    daemon=True,
                )
            )
            threads[-1].start()

    @property
    def is_direct(self) -> bool:
        """True if all files are read past the page cache."""
        return all(file.is_direct for file in self._files)

    def num_queued(self, *, is_urgent: bool) -> int:
        """Count the ranges of one priority that are not being read yet."""
        return self._queue.num_queued(is_urgent=is_urgent)

    def submit(self, request: ReadRequest, *, is_urgent: bool = True) -> None:
        """Queue a request; `take_completed` returns it."""
        self._queue.put(request, is_urgent=is_urgent)

    def make_urgent(self, request: ReadRequest) -> None:
        """Raise the priority of what is still queued of a request."""
        self._queue.make_urgent(request)

    def cancel(self, request: ReadRequest) -> bool:
        """Withdraw a prefetch. Returns False if a read of it has started."""
        return self._queue.cancel(request)

    def take_completed(self, *, wait: bool) -> ReadRequest | None:
        """Return a completed or failed request; without `wait`, None if none is ready."""
        if not wait and self._queue.completed.empty():
            return None
        return self._queue.completed.get()

    def close(self) -> None:
        """End the threads and close the files. Idempotent."""
        self._finalizer()


def _close(
    queue: ReadQueue,
    files: Sequence[DirectFile],
    threads: Sequence[threading.Thread],
    ring: _C.IoRing | None,
) -> None:
    queue.close()
    for thread in threads:
        thread.join()
    if ring is not None:
        ring.close()
    _close_files(files)


def _close_files(files: Sequence[DirectFile]) -> None:
    for file in files:
        file.close()

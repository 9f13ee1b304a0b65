"""Pieces of files into memory, in the background, past the page cache.

Knows files, offsets and memory; not what the bytes mean.
"""

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from hybridmoe import _C
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_backends import (
    NUM_THREADS,
    choose_engine,
    read_by_ring,
    read_by_thread,
)
from hybridmoe.experts.disk.read_queue import ReadQueue, Ticket

__all__ = ["FileReader"]


class FileReader:
    """Reads tickets in the order of their submission, urgent ones first. Ends with `close`."""

    def __init__(self, paths: Sequence[Path], *, num_threads: int = NUM_THREADS) -> None:
        """Open the files. num_threads: where there is no io_uring.

        Errors: DiskError; ConfigError where `HYBRIDMOE_IO` asks for what there is not.
        """
        self._files: list[DirectFile] = []
        try:
            for path in paths:
                self._files.append(DirectFile(path))
            engine = choose_engine(is_direct=self.is_direct)
        except BaseException:
            _close_files(self._files)
            raise
        ring = engine.ring
        self.engine = engine.describe(num_threads)
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
        """Whether the page cache is left out for all files."""
        return all(file.is_direct for file in self._files)

    def submit(self, ticket: Ticket, *, is_urgent: bool = True) -> None:
        """Queue a ticket; it comes back from `take`."""
        self._queue.put(ticket, is_urgent)

    def hurry(self, ticket: Ticket) -> None:
        """What is still queued of a ticket becomes urgent."""
        self._queue.hurry(ticket)

    def cancel(self, ticket: Ticket) -> bool:
        """Whether the ticket was taken back before anything of it was read; if so it is gone."""
        return self._queue.cancel(ticket)

    def take(self, *, wait: bool) -> Ticket | None:
        """A ticket that is done, for better or worse; None where there is none and wait=False."""
        if not wait and self._queue.done.empty():
            return None
        return self._queue.done.get()

    def close(self) -> None:
        """End the threads and close the files. Any number of times."""
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

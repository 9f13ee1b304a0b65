"""Background reads of file ranges into memory, past the page cache."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from queue import Empty

from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_backends import NUM_THREADS, choose_read_backend
from hybridmoe.experts.disk.read_queue import ReadQueue, ReadRequest
from hybridmoe.experts.disk.reader_threads import ReaderThreads
from hybridmoe.gguf.reader import FileState

__all__ = ["FileReader"]


class FileReader:
    """Reads requests in order of submission, urgent ones first. Must be closed."""

    def __init__(
        self,
        paths: Sequence[Path],
        states: Sequence[FileState] | None = None,
        *,
        num_threads: int = NUM_THREADS,
    ) -> None:
        """Open the files. states: when their headers were read. num_threads: without io_uring.

        Errors: DiskError; ConfigError if `HYBRIDMOE_IO` asks for a backend that is missing.
        """
        self._files: list[DirectFile] = []
        try:
            for i, path in enumerate(paths):
                self._files.append(DirectFile(path, states[i] if states else None))
            backend = choose_read_backend(is_direct=self.is_direct)
        except BaseException:
            _close_files(self._files)
            raise
        self._queue = ReadQueue(backend.ring.wake if backend.ring is not None else None)
        self._threads = ReaderThreads(self._queue, self._files, backend, num_threads)
        self._finalizer = weakref.finalize(self, self._threads.close)

    @property
    def backend(self) -> str:
        """Description of the backend, for users."""
        return self._threads.description

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

    def take_completed(self, *, wait: bool, timeout_s: float | None = None) -> ReadRequest | None:
        """Return a completed or failed request; None if none is ready, or comes in time.

        timeout_s: None = wait without end.
        """
        try:
            return self._queue.completed.get(wait, timeout_s)
        except Empty:
            return None

    def close(self) -> None:
        """End the threads and close the files. Reads that hang are abandoned. Idempotent."""
        self._finalizer()


def _close_files(files: Sequence[DirectFile]) -> None:
    for file in files:
        file.close()

"""Background reads of file ranges into memory, past the page cache.

The reads themselves are csrc's (base/file_reader.h), without the GIL.
"""

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path

from hybridmoe import _C
from hybridmoe.errors import DiskError
from hybridmoe.experts.disk import read_backend
from hybridmoe.experts.disk.open_file import OpenFile
from hybridmoe.experts.disk.read_backend import describe_backend, find_reason_for_threads
from hybridmoe.experts.disk.read_request import FileRange, ReadRequest
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import FileState

__all__ = ["CLOSE_S", "FileReader"]

CLOSE_S = 3.0  # for the reads under way when a model is closed

_log = logging.getLogger(__name__)
_abandoned: list[tuple[_C.FileReader, object]] = []  # readers that hang, and what they write to


class FileReader:
    """Reads requests in order of submission. Must be closed.

    Use either `submit` and `take_completed`, or `native`, which has more.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        states: Sequence[FileState] | None = None,
        *,
        piece_bytes: int = 0,
        num_threads: int = read_backend.NUM_THREADS,
    ) -> None:
        """Open the files. states: when their headers were read.

        piece_bytes: typical of the reads, 0 = small; decides what reads.
        num_threads: of each disk, without io_uring.
        Errors: DiskError; ConfigError if `HYBRIDMOE_IO` asks for a backend that is missing.
        """
        files: list[OpenFile] = []
        try:
            for i, path in enumerate(paths):
                files.append(OpenFile.open(path, states[i] if states else None))
            is_direct = all(file.direct_fd >= 0 for file in files)
            self.native = _C.FileReader(
                [(file.fd, file.direct_fd, file.state) for file in files],
                find_reason_for_threads(is_direct=is_direct, piece_bytes=piece_bytes),
                num_threads,
                read_backend.RING_DEPTH,
                read_backend.CHUNK_BYTES,
            )
        except BaseException:
            for file in files:
                file.close()
            raise
        self._names = [file.name for file in files]
        self._num_threads = num_threads
        self._why_threads = self.native.why_threads  # as far as it was told
        self._requests: dict[int, ReadRequest] = {}  # under way, by key
        self._memory: list[object] = [self._requests]
        self._finalizer = weakref.finalize(self, _close, self.native, self._names, self._memory)

    @property
    def backend(self) -> str:
        """Description of the backend, for users."""
        return describe_backend(
            self.native.why_threads,
            num_threads=self._num_threads,
            num_devices=self.native.num_devices,
        )

    def submit(self, request: ReadRequest) -> None:
        """Queue a request; `take_completed` returns it."""
        ranges = [
            (part.file_index, part.offset, part.num_bytes, buffer)
            for part, buffer in zip(request.ranges, request.buffers, strict=True)
        ]
        self.native.submit(request.key, ranges, is_urgent=True)
        self._requests[request.key] = request

    def take_completed(self, *, wait: bool, timeout_s: float | None = None) -> ReadRequest | None:
        """Return a completed or failed request; None if none is ready, or comes in time.

        timeout_s: None = wait without end.
        """
        limit = -1.0 if timeout_s is None else timeout_s
        end = self.native.take(limit if wait else 0.0)
        self.report()
        if end is None:
            return None
        key, number, reason = end
        request = self._requests.pop(key)
        if reason:
            request.error = self._error(request.ranges[number], reason)
        return request

    def report(self) -> None:
        """Log one line if io_uring has failed since the last call."""
        why = self.native.why_threads
        if why != self._why_threads:
            self._why_threads = why
            reason = why.removeprefix("io_uring failed: ")
            _log.warning("hybridmoe: io_uring failed (%s): experts are read by threads", reason)

    def keep_alive(self, memory: object) -> None:
        """Keep memory that `native` writes to until this is closed, and no read of it hangs."""
        self._memory.append(memory)

    def close(self) -> None:
        """End the reads and close the files. Reads that hang are abandoned. Idempotent."""
        self._finalizer()

    def _error(self, part: FileRange, reason: str) -> DiskError:
        return DiskError(
            f"{self._names[part.file_index]}: tensor {printable(part.name)}: cannot read"
            f" {part.num_bytes} bytes at offset {part.offset}: {reason}"
        )


def _close(native: _C.FileReader, names: Sequence[str], memory: object) -> None:
    _abandoned[:] = [pair for pair in _abandoned if not pair[0].close(0.0)]
    if native.close(CLOSE_S):
        return
    _abandoned.append((native, memory))
    _log.warning(
        "hybridmoe: %s: the disk has not returned reads for %g s; closed without them",
        names[0],
        CLOSE_S,
    )

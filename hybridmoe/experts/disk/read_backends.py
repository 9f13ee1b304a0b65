"""Read backends: threads that each wait for one read, or one io_uring thread with many in flight.

io_uring reads no faster here, but takes less CPU time (docs/log.md), so it is the default on
systems that have it.
"""

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from hybridmoe import _C, env
from hybridmoe.errors import ConfigError, DiskError, ShapeError
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_queue import ReadQueue, RequestedRange
from hybridmoe.gguf.cursor import printable
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = [
    "NUM_THREADS",
    "ReadBackend",
    "RequestedRange",
    "choose_read_backend",
    "read_by_ring",
    "read_by_thread",
]

NUM_THREADS = 4  # large reads: each alone keeps a disk's queue full
RING_DEPTH = 32  # chunks in flight
# Errors that io_uring itself may give a read. Threads then try it, and tell what the disk says.
_RING_ERRORS = {
    errno.EACCES, errno.EAGAIN, errno.EBUSY, errno.ECANCELED, errno.EINVAL, errno.ENOMEM,
    errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM,
}  # fmt: skip
CHUNK_BYTES = 512 << 10  # smaller ones cost more CPU time; some disk drivers split larger ones


class ReadBackend(NamedTuple):
    """Choice of a read backend."""

    ring: _C.IoRing | None  # None = threads
    reason: str  # for threads

    def describe(self, num_threads: int = NUM_THREADS) -> str:
        """Describe the backend for users."""
        return "io_uring" if self.ring is not None else f"{num_threads} threads ({self.reason})"


def choose_read_backend(*, is_direct: bool = True) -> ReadBackend:
    """Choose io_uring if the system has it, unless `HYBRIDMOE_IO` says otherwise.

    is_direct: True if the files take direct reads. io_uring hands buffered reads to kernel threads,
    which gains nothing.
    Errors: ConfigError if io_uring is asked for and missing.
    """
    wanted = env.io_engine()
    if wanted == "threads":
        return ReadBackend(None, "HYBRIDMOE_IO=threads")
    if wanted == "auto" and not is_direct:
        return ReadBackend(None, "the file system takes no direct reads")
    try:
        return ReadBackend(_C.IoRing(RING_DEPTH, CHUNK_BYTES, BLOCK_BYTES), "")
    except ShapeError as error:
        if wanted == "uring":
            raise ConfigError(f"HYBRIDMOE_IO=uring: {error}; use auto or threads") from None
        return ReadBackend(None, str(error))


def read_by_thread(queue: ReadQueue, files: Sequence[DirectFile]) -> None:
    """Read one range after the other until the queue is closed."""
    while (work := queue.get()) is not None:
        error: DiskError | None = None
        try:
            files[work.range.file_index].read(work.range, work.buffer)
        except DiskError as failure:
            error = failure
        except Exception as failure:  # must not end the thread: requests would never complete
            error = DiskError(f"tensor {printable(work.range.name)}: cannot be read: {failure}")
        queue.finish(work.request, error)


class _RingRefusal(Exception):
    """Error of a read that is io_uring's own, not the disk's."""


def read_by_ring(
    queue: ReadQueue,
    files: Sequence[DirectFile],
    ring: _C.IoRing,
    in_flight: dict[int, RequestedRange],
) -> str | None:
    """Read many ranges at a time until the queue is closed, which must wake the ring.

    in_flight: filled with what is not finished at the end; the kernel writes to its buffers until
    the ring is drained. Returns why io_uring failed, in one line, or None.
    """
    try:
        _run_ring(queue, files, ring, in_flight)
    except Exception as failure:  # all requests must complete, or their submitters wait forever
        return " ".join(str(failure).split())
    return None


def _run_ring(
    queue: ReadQueue,
    files: Sequence[DirectFile],
    ring: _C.IoRing,
    in_flight: dict[int, RequestedRange],
) -> None:
    num_started = 0
    is_direct: dict[int, bool] = {}  # by tag, as `in_flight`

    def start(tag: int, work: RequestedRange) -> None:
        part = work.range
        file = files[part.file_index]
        in_flight[tag], is_direct[tag] = work, file.is_direct
        num_bytes, first = part.skew + part.num_bytes, part.offset - part.skew
        ring.begin(tag, file.fd(is_direct[tag]), work.buffer, num_bytes, first)

    while True:
        while ring.has_room and (queued := queue.poll()) is not None:
            num_started += 1
            start(num_started, queued)
        if queue.is_closed:
            return
        for tag, error, file_end in ring.wait():
            work, was_direct = in_flight[tag], is_direct[tag]
            part = work.range
            file = files[part.file_index]
            if error and file.fall_back_to_buffered(was_direct, error):
                start(tag, work)
                continue
            if error in _RING_ERRORS:
                raise _RingRefusal(os.strerror(error))
            del in_flight[tag], is_direct[tag]
            failure = file.find_change(part)
            if error:
                failure = file.read_error(part, os.strerror(error))
            elif file_end >= 0:
                failure = file.read_error(part, f"the file ends at {file_end}")
            if not was_direct:
                file.drop_cached(part.offset, part.num_bytes)
            queue.finish(work.request, failure)

"""Read backends: threads that each wait for one read, or one io_uring thread with many in flight.

io_uring reads no faster here, but takes less CPU time (docs/log.md), so it is the default on
systems that have it.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from hybridmoe import _C, env
from hybridmoe.errors import ConfigError, DiskError, ShapeError
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_queue import ReadQueue, RequestedRange
from hybridmoe.gguf.cursor import printable
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["NUM_THREADS", "ReadBackend", "choose_read_backend", "read_by_ring", "read_by_thread"]

NUM_THREADS = 4  # large reads: each alone keeps a disk's queue full
RING_DEPTH = 32  # chunks in flight
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


class _InFlightRead(NamedTuple):
    """A read given to the ring. Keeps the memory alive that the kernel writes to."""

    work: RequestedRange
    is_direct: bool


def read_by_ring(queue: ReadQueue, files: Sequence[DirectFile], ring: _C.IoRing) -> None:
    """Read many ranges at a time until the queue is closed, which must wake the ring."""
    in_flight: dict[int, _InFlightRead] = {}
    try:
        _run_ring(queue, files, ring, in_flight)
    except Exception as failure:  # all requests must complete, or their submitters wait forever
        reason = f"cannot be read: {failure}"
        for work, _ in in_flight.values():
            queue.finish(work.request, DiskError(f"tensor {printable(work.range.name)}: {reason}"))
        while (work_left := queue.get()) is not None:
            name = printable(work_left.range.name)
            queue.finish(work_left.request, DiskError(f"tensor {name}: {reason}"))


def _run_ring(
    queue: ReadQueue,
    files: Sequence[DirectFile],
    ring: _C.IoRing,
    in_flight: dict[int, _InFlightRead],
) -> None:
    num_started = 0

    def start(tag: int, work: RequestedRange) -> None:
        part = work.range
        file = files[part.file_index]
        in_flight[tag] = read = _InFlightRead(work, file.is_direct)
        num_bytes, first = part.skew + part.num_bytes, part.offset - part.skew
        ring.begin(tag, file.fd(read.is_direct), work.buffer, num_bytes, first)

    while True:
        while ring.has_room and (queued := queue.poll()) is not None:
            num_started += 1
            start(num_started, queued)
        if queue.is_closed and not in_flight:
            return
        for tag, error, file_end in ring.wait():
            work, was_direct = in_flight[tag]
            part = work.range
            file = files[part.file_index]
            if error and file.fall_back_to_buffered(was_direct, error):
                start(tag, work)
                continue
            del in_flight[tag]
            failure = None
            if error:
                failure = file.read_error(part, os.strerror(error))
            elif file_end >= 0:
                failure = file.read_error(part, f"the file ends at {file_end}")
            if not was_direct:
                file.drop_cached(part.offset, part.num_bytes)
            queue.finish(work.request, failure)

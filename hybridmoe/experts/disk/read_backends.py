"""Who reads queued pieces: threads that each wait for one read, or one that has many under way.

The second is io_uring's. It reads no faster here, but takes less of the cores' time (docs/log.md),
so it is taken where the system has it.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from hybridmoe import _C, env
from hybridmoe.errors import ConfigError, DiskError, ShapeError
from hybridmoe.experts.disk.direct_file import DirectFile
from hybridmoe.experts.disk.read_queue import ReadQueue, Ticket
from hybridmoe.gguf.cursor import printable
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["NUM_THREADS", "Engine", "choose_engine", "read_by_ring", "read_by_thread"]

NUM_THREADS = 4  # large reads: each alone keeps a disk's queue full
RING_DEPTH = 32  # chunks under way
CHUNK_BYTES = 512 << 10  # less costs more time of the cores, more is split by some disks' drivers


class Engine(NamedTuple):
    """How pieces are read."""

    ring: _C.IoRing | None  # None: by threads
    why: str  # there is no ring

    def describe(self, num_threads: int = NUM_THREADS) -> str:
        """For people."""
        return "io_uring" if self.ring is not None else f"{num_threads} threads ({self.why})"


def choose_engine(*, is_direct: bool = True) -> Engine:
    """io_uring where there is one, unless `HYBRIDMOE_IO` says something else.

    is_direct: whether the files take direct reads. io_uring gives others to threads of the kernel,
    so that there is nothing to be won.
    Errors: ConfigError where io_uring is asked for and there is none.
    """
    wanted = env.io_engine()
    if wanted == "threads":
        return Engine(None, "HYBRIDMOE_IO=threads")
    if wanted == "auto" and not is_direct:
        return Engine(None, "the file system takes no direct reads")
    try:
        return Engine(_C.IoRing(RING_DEPTH, CHUNK_BYTES, BLOCK_BYTES), "")
    except ShapeError as error:
        if wanted == "uring":
            raise ConfigError(f"HYBRIDMOE_IO=uring: {error}; use auto or threads") from None
        return Engine(None, str(error))


def read_by_thread(queue: ReadQueue, files: Sequence[DirectFile]) -> None:
    """Read piece after piece, until the queue is closed."""
    while (work := queue.get()) is not None:
        ticket, i = work
        piece = ticket.pieces[i]
        error: DiskError | None = None
        try:
            files[piece.part].read(piece, ticket.memory[i])
        except DiskError as failure:
            error = failure
        except Exception as failure:  # must not end the thread, for which others wait
            error = DiskError(f"tensor {printable(piece.name)}: cannot be read: {failure}")
        queue.finish(ticket, error)


class _Begun(NamedTuple):
    """A piece on its way. Holds the memory that the kernel writes to."""

    ticket: Ticket
    piece: int  # of the ticket's
    is_direct: bool


def read_by_ring(queue: ReadQueue, files: Sequence[DirectFile], ring: _C.IoRing) -> None:
    """Read pieces, many at a time, until the queue is closed; it has to wake the ring."""
    begun: dict[int, _Begun] = {}
    try:
        _use_ring(queue, files, ring, begun)
    except Exception as failure:  # must not leave those waiting who wait for pieces
        why = f"cannot be read: {failure}"
        for ticket, i, _ in begun.values():
            queue.finish(ticket, DiskError(f"tensor {printable(ticket.pieces[i].name)}: {why}"))
        while (work := queue.get()) is not None:
            name = printable(work[0].pieces[work[1]].name)
            queue.finish(work[0], DiskError(f"tensor {name}: {why}"))


def _use_ring(
    queue: ReadQueue, files: Sequence[DirectFile], ring: _C.IoRing, begun: dict[int, _Begun]
) -> None:
    num_begun = 0

    def begin(tag: int, ticket: Ticket, i: int) -> None:
        piece = ticket.pieces[i]
        file = files[piece.part]
        begun[tag] = work = _Begun(ticket, i, file.is_direct)
        num_bytes, start = piece.skew + piece.num_bytes, piece.offset - piece.skew
        ring.begin(tag, file.fd(work.is_direct), ticket.memory[i], num_bytes, start)

    while True:
        while ring.has_room and (work := queue.poll()) is not None:
            num_begun += 1
            begin(num_begun, *work)
        if queue.is_closed and not begun:
            return
        for tag, error, file_end in ring.wait():
            ticket, i, was_direct = begun[tag]
            piece = ticket.pieces[i]
            file = files[piece.part]
            if error and file.turns_buffered(was_direct, error):
                begin(tag, ticket, i)
                continue
            del begun[tag]
            failure = None
            if error:
                failure = file.failure(piece, os.strerror(error))
            elif file_end >= 0:
                failure = file.failure(piece, f"the file ends at {file_end}")
            if not was_direct:
                file.forget(piece.offset, piece.num_bytes)
            queue.finish(ticket, failure)

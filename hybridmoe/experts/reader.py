"""Pieces of files into memory, by threads, past the page cache.

O_DIRECT where the file system takes it. Where it does not: buffered reads with read-ahead off,
whose pages are given back at once, so that a file larger than memory does not push out what is in
use.
Knows files, offsets and memory; not what the bytes mean.
"""

import errno
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, NoReturn

from hybridmoe.errors import DiskError
from hybridmoe.gguf.cursor import printable

__all__ = ["BLOCK_BYTES", "FileReader", "Piece", "Ticket", "room_for"]

BLOCK_BYTES = 4096  # what O_DIRECT wants offsets, lengths and addresses to be multiples of
NUM_THREADS = 4  # large reads: each alone keeps a disk's queue full


class Piece(NamedTuple):
    """Bytes of a file. `name`: of the tensor, for messages."""

    part: int  # which file
    offset: int
    num_bytes: int
    name: str

    @property
    def skew(self) -> int:
        """Where the bytes begin in the memory they are read to."""
        return self.offset % BLOCK_BYTES


def room_for(num_bytes: int) -> int:
    """Memory that takes so many bytes from wherever in a file: whole blocks."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES


class Ticket:
    """Some pieces that are read together. Its fields belong to whoever submits and takes it."""

    def __init__(self, key: int, pieces: Sequence[Piece], memory: Sequence[memoryview]) -> None:
        """memory: for each piece `room_for` its bytes, at an address that is a whole block."""
        self.key = key
        self.pieces = pieces
        self.memory = memory
        self.error: DiskError | None = None
        self.num_left = len(pieces)  # the reader's


class FileReader:
    """Reads tickets in the order of their submission, urgent ones first. Ends with `close`."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        num_threads: int = NUM_THREADS,
    ) -> None:
        """Open the files. Errors: DiskError."""
        self._queue = _Queue()
        self._files: list[_File] = []
        threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _close, self._queue, self._files, threads)
        for path in paths:
            self._files.append(_File(path))
        for i in range(num_threads):
            threads.append(
                threading.Thread(
                    target=_run,
                    args=(self._queue, self._files),
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


class _Queue:
    """Pieces that wait, and tickets that are done."""

    def __init__(self) -> None:
        self.done: SimpleQueue[Ticket] = SimpleQueue()
        self._urgent: deque[tuple[Ticket, int]] = deque()
        self._other: deque[tuple[Ticket, int]] = deque()
        self._condition = threading.Condition()
        self._is_closed = False

    def put(self, ticket: Ticket, is_urgent: bool) -> None:
        work = [(ticket, i) for i in range(len(ticket.pieces))]
        with self._condition:
            (self._urgent if is_urgent else self._other).extend(work)
            self._condition.notify(len(work))

    def get(self) -> tuple[Ticket, int] | None:
        """The next piece, once there is one; None when the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._urgent or self._other)
            if self._is_closed:
                return None
            return (self._urgent or self._other).popleft()

    def finish(self, ticket: Ticket, error: DiskError | None) -> None:
        """One piece of a ticket is done."""
        with self._condition:
            ticket.error = ticket.error or error
            ticket.num_left -= 1
            if ticket.num_left == 0:
                self.done.put(ticket)

    def hurry(self, ticket: Ticket) -> None:
        with self._condition:
            self._urgent.extend(work for work in self._other if work[0] is ticket)
            self._other = deque(work for work in self._other if work[0] is not ticket)

    def cancel(self, ticket: Ticket) -> bool:
        with self._condition:
            if sum(work[0] is ticket for work in self._other) < len(ticket.pieces):
                return False
            self._other = deque(work for work in self._other if work[0] is not ticket)
            return True

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()


class _File:
    """One open file."""

    def __init__(self, path: Path) -> None:
        self._name = printable(path.name, 255)
        self._fds = [self._open(path, 0)]
        with suppress(OSError):  # no read-ahead
            os.posix_fadvise(self._fds[0], 0, 0, os.POSIX_FADV_RANDOM)
        self.is_direct = False
        with suppress(DiskError):
            self._fds.append(self._open(path, os.O_DIRECT))
            self.is_direct = True

    def read(self, piece: Piece, memory: memoryview) -> None:
        """Read a piece to `memory`, from `piece.skew` on. Errors: DiskError."""
        start = piece.offset - piece.skew
        wanted = piece.skew + piece.num_bytes
        whole = -(-wanted // BLOCK_BYTES) * BLOCK_BYTES
        done = 0
        while done < wanted:
            is_direct = self.is_direct
            fd = self._fds[is_direct]
            try:
                count = os.preadv(fd, [memory[done:whole]], start + done)
            except OSError as error:
                if is_direct and error.errno == errno.EINVAL:
                    self.is_direct = False  # it could be opened so, but not read
                    continue
                self._fail(piece, error.strerror or str(error))
            if not is_direct:
                with suppress(OSError):
                    os.posix_fadvise(fd, start + done, count, os.POSIX_FADV_DONTNEED)
            whole_blocks = (done + count) // BLOCK_BYTES * BLOCK_BYTES
            if done + count < wanted and whole_blocks == done:
                self._fail(piece, f"the file ends at {start + done + count}")
            done = done + count if done + count >= wanted else whole_blocks

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            raise DiskError(f"{self._name}: cannot be opened: {error.strerror}") from None

    def _fail(self, piece: Piece, why: str) -> NoReturn:
        raise DiskError(
            f"{self._name}: tensor {printable(piece.name)}: cannot read {piece.num_bytes} bytes"
            f" at offset {piece.offset}: {why}"
        )


def _run(queue: _Queue, files: Sequence[_File]) -> None:
    """A thread: read piece after piece."""
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


def _close(queue: _Queue, files: Sequence[_File], threads: Sequence[threading.Thread]) -> None:
    queue.close()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()

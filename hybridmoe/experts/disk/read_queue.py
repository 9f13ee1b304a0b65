"""Pieces of files that are to be read, and who waits for which."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from hybridmoe.errors import DiskError
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["Piece", "ReadQueue", "Ticket"]


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


class Ticket:
    """Some pieces that are read together. Its fields belong to whoever submits and takes it."""

    def __init__(self, key: int, pieces: Sequence[Piece], memory: Sequence[memoryview]) -> None:
        """memory: for each piece a buffer of `direct_buffer_bytes` that begins at a whole block."""
        self.key = key
        self.pieces = pieces
        self.memory = memory
        self.error: DiskError | None = None
        self.num_left = len(pieces)  # the reader's


class ReadQueue:
    """Pieces that wait, urgent ones first, and tickets that are done. For any thread."""

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        """wake: called when there is something new, for one who cannot wait in `get`."""
        self.done: SimpleQueue[Ticket] = SimpleQueue()
        self._wake = wake or (lambda: None)
        self._urgent: deque[tuple[Ticket, int]] = deque()
        self._other: deque[tuple[Ticket, int]] = deque()
        self._condition = threading.Condition()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def put(self, ticket: Ticket, is_urgent: bool) -> None:
        """Queue a ticket's pieces."""
        work = [(ticket, i) for i in range(len(ticket.pieces))]
        with self._condition:
            (self._urgent if is_urgent else self._other).extend(work)
            self._condition.notify(len(work))
        self._wake()

    def get(self) -> tuple[Ticket, int] | None:
        """The next piece, once there is one; None when the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._urgent or self._other)
            return self._pop()

    def poll(self) -> tuple[Ticket, int] | None:
        """The next piece; None where there is none now."""
        with self._condition:
            return self._pop()

    def finish(self, ticket: Ticket, error: DiskError | None) -> None:
        """One piece of a ticket is done."""
        with self._condition:
            ticket.error = ticket.error or error
            ticket.num_left -= 1
            if ticket.num_left == 0:
                self.done.put(ticket)

    def hurry(self, ticket: Ticket) -> None:
        """What still waits of a ticket becomes urgent."""
        with self._condition:
            self._urgent.extend(work for work in self._other if work[0] is ticket)
            self._other = deque(work for work in self._other if work[0] is not ticket)

    def cancel(self, ticket: Ticket) -> bool:
        """Whether all of a ticket still waited; if so it is gone."""
        with self._condition:
            if sum(work[0] is ticket for work in self._other) < len(ticket.pieces):
                return False
            self._other = deque(work for work in self._other if work[0] is not ticket)
            return True

    def close(self) -> None:
        """Nothing more is given out."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._wake()

    def _pop(self) -> tuple[Ticket, int] | None:
        if self._is_closed or not (self._urgent or self._other):
            return None
        return (self._urgent or self._other).popleft()

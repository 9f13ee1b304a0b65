"""Read requests, and the two-priority queue that the reader threads drain."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from hybridmoe.errors import DiskError
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["FileRange", "ReadQueue", "ReadRequest", "RequestedRange"]


class FileRange(NamedTuple):
    """Byte range of a model file."""

    file_index: int
    offset: int
    num_bytes: int
    name: str  # of the tensor, for messages

    @property
    def skew(self) -> int:
        """Offset of the range in the buffer it is read to, which starts at a disk block."""
        return self.offset % BLOCK_BYTES


class ReadRequest:
    """File ranges that are read together. Owned by the submitter, except while it is queued."""

    def __init__(
        self, key: int, ranges: Sequence[FileRange], buffers: Sequence[memoryview]
    ) -> None:
        """buffers: one a range, of `direct_buffer_bytes`, at the address of a whole block."""
        self.key = key
        self.ranges = ranges
        self.buffers = buffers
        self.error: DiskError | None = None
        self.num_left = len(ranges)  # the queue's


class RequestedRange(NamedTuple):
    """One range of a request: the unit of work of a reader."""

    request: ReadRequest
    number: int

    @property
    def range(self) -> FileRange:
        return self.request.ranges[self.number]

    @property
    def buffer(self) -> memoryview:
        return self.request.buffers[self.number]


class ReadQueue:
    """Queued ranges, urgent ones before prefetches, and completed requests. Thread-safe."""

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        """wake: called after each change, for a reader that cannot block in `get`."""
        self.completed: SimpleQueue[ReadRequest] = SimpleQueue()
        self._wake = wake or (lambda: None)
        self._urgent: deque[RequestedRange] = deque()
        self._prefetches: deque[RequestedRange] = deque()
        self._condition = threading.Condition()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def num_queued(self, *, is_urgent: bool) -> int:
        """Count the ranges of one priority that are not being read yet."""
        return len(self._urgent if is_urgent else self._prefetches)

    def put(self, request: ReadRequest, *, is_urgent: bool) -> None:
        """Queue a request's ranges."""
        work = [RequestedRange(request, i) for i in range(len(request.ranges))]
        with self._condition:
            (self._urgent if is_urgent else self._prefetches).extend(work)
            self._condition.notify(len(work))
        self._wake()

    def put_back(self, work: Sequence[RequestedRange]) -> None:
        """Queue ranges again that were handed out and not finished, before all others."""
        with self._condition:
            self._urgent.extendleft(reversed(work))
            self._condition.notify(len(work))

    def get(self) -> RequestedRange | None:
        """Wait for the next range. Returns None once the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._urgent or self._prefetches)
            return self._pop()

    def poll(self) -> RequestedRange | None:
        """Return the next range, or None if none is queued now."""
        with self._condition:
            return self._pop()

    def finish(self, request: ReadRequest, error: DiskError | None) -> None:
        """Count one range of a request as done; the last one completes the request."""
        with self._condition:
            request.error = request.error or error
            request.num_left -= 1
            if request.num_left == 0:
                self.completed.put(request)

    def make_urgent(self, request: ReadRequest) -> None:
        """Raise the priority of a request's queued ranges."""
        with self._condition:
            self._urgent.extend(work for work in self._prefetches if work.request is request)
            self._prefetches = deque(
                work for work in self._prefetches if work.request is not request
            )

    def cancel(self, request: ReadRequest) -> bool:
        """Remove a prefetch of which no range was started. Returns False if it is too late."""
        with self._condition:
            num_queued = sum(work.request is request for work in self._prefetches)
            if num_queued < len(request.ranges):
                return False
            self._prefetches = deque(
                work for work in self._prefetches if work.request is not request
            )
            return True

    def close(self) -> None:
        """Hand out no further ranges."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._wake()

    def _pop(self) -> RequestedRange | None:
        if self._is_closed or not (self._urgent or self._prefetches):
            return None
        return (self._urgent or self._prefetches).popleft()

"""Streams that need no GPU: work runs in Python, at once or when it is waited for."""

from collections import deque
from collections.abc import Callable
from threading import RLock

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream

__all__ = ["FakeEvent", "FakeStream"]


class FakeEvent:
    """`Event` of a `FakeStream`."""

    def __init__(self, stream: "FakeStream", end: int) -> None:
        self.stream, self.end = stream, end

    def is_done(self) -> bool:
        return self.stream.num_done >= self.end

    def wait(self) -> None:
        self.stream.run_to(self.end)


class FakeStream:
    """Work that runs in order, in the thread that asks for it or waits for it. From any thread."""

    def __init__(self, *, is_lazy: bool, is_current: bool = False) -> None:
        """is_lazy: work runs when it is waited for; else at once.

        is_current: torch's own operations, which run at once, count as work of this stream: a wait
        takes effect at once, and what is copied from here is what it is now. Only what others read
        may be copied in it, if it is lazy.
        """
        self.is_lazy, self.is_current = is_lazy, is_current
        self.is_captured = False
        self.num_done = 0
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = RLock()

    def is_idle(self) -> bool:
        return not self._waiting

    def copy(self, dst: Tensor, src: Tensor) -> None:
        source = src.clone() if self.is_lazy and self.is_current else src
        self._add(lambda: dst.copy_(source))

    def launch(self, call: _C.HostCall) -> None:
        self._add(call.run)

    def wait_for(self, other: Stream | Event) -> None:
        event = other.record() if isinstance(other, FakeStream) else other
        assert isinstance(event, FakeEvent), event
        self._add(event.wait)
        if self.is_current:
            self.synchronize()

    def record(self) -> FakeEvent:
        with self._lock:
            return FakeEvent(self, self.num_done + len(self._waiting))

    def synchronize(self) -> None:
        self.record().wait()

    def run_to(self, end: int) -> None:
        """Do everything up to the `end`-th piece of work since the beginning."""
        with self._lock, torch.inference_mode():  # as the program, whoever waits
            while self.num_done < end:
                self._waiting.popleft()()
                self.num_done += 1

    def _add(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._waiting.append(work)
            if not self.is_lazy:
                self.synchronize()

"""Streams: what a card and the CPU do in turn, and a stand-in for them that needs no card.

A stream is a queue of copies and calls that run in order, later than they are asked for. The
program asks for everything at once and never waits: one stream waits for another. `FakeStream` runs
in Python; its lazy form puts work off until somebody waits for it, which is what shows a wait that
was forgotten.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from threading import RLock
from typing import Protocol

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.errors import ConfigError, HybridMoeError, ShapeError

__all__ = ["CudaStream", "Event", "FakeStream", "Stream", "host_empty"]


class Event(Protocol):
    """A place in a stream: the end of what was in it when the event was recorded."""

    def is_done(self) -> bool:
        """Whether the stream has come so far. Does not wait."""
        ...

    def wait(self) -> None:
        """Let the calling thread wait until it has."""
        ...


class Stream(Protocol):
    """Work in order. Only `synchronize` and `Event.wait` keep the caller."""

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """dst = src, of one shape and type; both stay in place until it is done."""
        ...

    def launch(self, call: _C.HostExpertCall) -> None:
        """Run a call on the CPU; it and its memory stay alive until that is done."""
        ...

    def wait_for(self, other: "Stream | Event") -> None:
        """Later work here begins after an event, or after all that `other` has been given so far.

        Streams and events of one kind belong together.
        """
        ...

    def record(self) -> Event:
        """The end of what is in here now."""
        ...

    def synchronize(self) -> None:
        """Let the calling thread wait until all is done."""
        ...


def host_empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory on the host that `device` can copy from and to by itself: page-locked for a card."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


@cache
def _driver() -> _C.CudaDriver:
    try:
        return _C.CudaDriver("libcuda.so.1")
    except ShapeError as error:
        raise ConfigError(str(error)) from None


class CudaEvent:
    """`Event` of a card. Not while its stream is captured."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    """A stream of a card. Everything here can be captured in a graph but what keeps the caller."""

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        """None: whichever stream torch works in at the time, so that it is the captured one."""
        self._stream = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        """Torch's own object."""
        return self._stream or torch.cuda.current_stream()

    def copy(self, dst: Tensor, src: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            dst.copy_(src, non_blocking=True)

    def launch(self, call: _C.HostExpertCall) -> None:
        """Errors: ConfigError where the driver has no such function, HybridMoeError if it fails."""
        driver = _driver()
        try:
            driver.launch(self.stream.cuda_stream, call)
        except ShapeError as error:
            raise HybridMoeError(str(error)) from None

    def wait_for(self, other: Stream | Event) -> None:
        if isinstance(other, CudaStream):
            self.stream.wait_stream(other.stream)
        else:
            assert isinstance(other, CudaEvent), other
            self.stream.wait_event(other.event)

    def record(self) -> CudaEvent:
        return CudaEvent(self.stream.record_event())

    def synchronize(self) -> None:
        self.stream.synchronize()


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
        """is_lazy: nothing runs before somebody waits for it; else everything at once.

        is_current: torch's own operations, which run at once, count as work of this stream: a wait
        takes effect at once, and what is copied from here is what it is now. Only what others read
        may be copied in it, if it is lazy.
        """
        self.is_lazy, self.is_current = is_lazy, is_current
        self.num_done = 0
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = RLock()

    def copy(self, dst: Tensor, src: Tensor) -> None:
        source = src.clone() if self.is_lazy and self.is_current else src
        self._add(lambda: dst.copy_(source))

    def launch(self, call: _C.HostExpertCall) -> None:
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
        with self._lock:
            while self.num_done < end:
                self._waiting.popleft()()
                self.num_done += 1

    def _add(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._waiting.append(work)
            if not self.is_lazy:
                self.synchronize()

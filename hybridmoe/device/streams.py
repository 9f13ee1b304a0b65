"""Streams: what a card and the CPU do in turn, and a stand-in for them that needs no card.

A stream is a queue of copies and calls that run in order, later than they are asked for. The
program asks for everything at once and never waits: one stream waits for another. `FakeStream` runs
in Python; its lazy form puts work off until somebody waits for it, which is what shows a wait that
was forgotten.
"""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.errors import ConfigError, HybridMoeError, ShapeError

__all__ = ["CudaStream", "Event", "Stream", "host_empty"]


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

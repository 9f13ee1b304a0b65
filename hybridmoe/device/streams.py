"""Streams of GPU work and host functions.

A stream is a queue of copies and calls that run in order, later than they are queued. The program
queues everything at once and never waits: one stream waits for another.
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
    """Marker in a stream: the end of the work queued when it was recorded."""

    def is_done(self) -> bool:
        """Return True once the stream has passed it. Does not wait."""
        ...

    def wait(self) -> None:
        """Block the calling thread until then."""
        ...


class Stream(Protocol):
    """Ordered queue of work. Only `synchronize` and `Event.wait` block the caller."""

    @property
    def is_captured(self) -> bool:
        """True while queued work becomes part of a graph instead of being done."""
        ...

    def is_idle(self) -> bool:
        """Return True if all work is done. Errors: torch's, of work that failed."""
        ...

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """Queue dst = src, of one shape and type; both stay in place until it is done."""
        ...

    def launch(self, call: _C.HostCall) -> None:
        """Queue a call on the CPU; it and its memory stay alive until it is done."""
        ...

    def wait_for(self, other: "Stream | Event") -> None:
        """Order later work here after an event, or after all work queued in `other` so far.

        Both belong to one implementation.
        """
        ...

    def record(self) -> Event:
        """Record an event behind the work queued so far."""
        ...

    def synchronize(self) -> None:
        """Block the calling thread until all work is done."""
        ...


def host_empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate host memory for asynchronous copies: pinned for a GPU."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


@cache
def _driver() -> _C.CudaDriver:
    try:
        return _C.CudaDriver("libcuda.so.1")
    except ShapeError as error:
        raise ConfigError(str(error)) from None


class CudaEvent:
    """CUDA event. Not while its stream is captured."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    """CUDA stream. All but the blocking methods can be captured in a graph."""

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        """stream: None = torch's current stream at each call, so that it is the captured one."""
        self._stream = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        """Return torch's own object."""
        return self._stream or torch.cuda.current_stream()

    @property
    def is_captured(self) -> bool:
        with torch.cuda.stream(self.stream):
            return bool(torch.cuda.is_current_stream_capturing())

    def is_idle(self) -> bool:
        return bool(self.stream.query())

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """Queue a copy; of bytes to the GPU without torch, which takes ten times as long for it."""
        if (
            dst.dtype is torch.uint8
            and dst.is_cuda
            and not src.is_cuda
            and self._copy_bytes(dst, src)
        ):
            return
        with torch.cuda.stream(self.stream):
            dst.copy_(src, non_blocking=True)

    def _copy_bytes(self, dst: Tensor, src: Tensor) -> bool:
        """Return False for torch to copy, or to raise its own error."""
        num_bytes = dst.nbytes
        if not (dst.is_contiguous() and src.is_contiguous() and num_bytes == src.nbytes > 0):
            return False
        try:
            _driver().copy(self.stream.cuda_stream, dst.data_ptr(), src.data_ptr(), num_bytes)
        except ShapeError:
            return False
        return True

    def launch(self, call: _C.HostCall) -> None:
        """Queue a call.

        Errors: ConfigError if the driver lacks host functions, HybridMoeError if it fails.
        """
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

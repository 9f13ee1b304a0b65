"""Streaming of experts to a GPU that keeps none of them: host weights in, device buffer out.

Two experts are in flight: while one is multiplied, the next is copied over the link, and the one
after it into pinned memory. Streams wait for each other through events; the host waits only for a
free pinned buffer.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.planning.prefill_split import STREAM_BUFFERS

__all__ = ["COPY_THREADS", "SlotPart", "WeightStream", "fill"]

COPY_THREADS = 3  # of an expert's gate, up and down


class SlotPart(NamedTuple):
    """Host bytes of an expert, and their offset in a slot."""

    offset: int
    data: NDArray[np.uint8]


class WeightStream:
    """Ring of pinned host buffers and device buffers. Not thread-safe."""

    def __init__(self, num_bytes: int, device: torch.device, main: Stream, link: Stream) -> None:
        """num_bytes: of the largest expert. main: stream that multiplies. link: copies only."""
        self._main, self._link = main, link
        self._pinned = [
            host_empty((num_bytes,), torch.uint8, device) for _ in range(STREAM_BUFFERS)
        ]
        self._on_device = [
            torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(STREAM_BUFFERS)
        ]
        self._sent: list[Event] = [
            link.record() for _ in range(STREAM_BUFFERS)
        ]  # frees a pinned buffer
        self._used: list[Event] = [
            main.record() for _ in range(STREAM_BUFFERS)
        ]  # frees a device buffer
        self._next = 0
        self._threads = ThreadPoolExecutor(COPY_THREADS, "expert-copy")

    @contextmanager
    def stream(self, parts: Sequence[SlotPart]) -> Iterator[Tensor]:
        """Give a device buffer (bytes,) uint8 with the parts, for work queued on `main` within.

        Returns before they have arrived; `main` waits for them.
        """
        number, self._next = self._next, (self._next + 1) % STREAM_BUFFERS
        pinned, on_device = self._pinned[number], self._on_device[number]
        self._sent[number].wait()
        end = fill(self._threads, pinned, parts)
        self._link.wait_for(self._used[number])
        self._link.copy(on_device[:end], pinned[:end])
        self._sent[number] = self._link.record()
        self._main.wait_for(self._sent[number])
        try:
            yield on_device
        finally:
            self._used[number] = self._main.record()

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._threads.shutdown()


def fill(threads: ThreadPoolExecutor, buffer: Tensor, parts: Sequence[SlotPart]) -> int:
    """Copy all parts to their offsets in `buffer` at once. Returns the end of the last one."""
    bytes = buffer.numpy()

    def copy(part: SlotPart) -> int:
        end = part.offset + part.data.nbytes
        np.copyto(bytes[part.offset : end], part.data)  # releases the GIL
        return end

    return max(threads.map(copy, parts))

"""Experts on their way to a card: bytes in, a place in the card's memory out, two at a time.

While one expert is multiplied, the next is copied over the link, and the one after it into
page-locked memory. Streams wait for each other through events; the host waits only for a
page-locked buffer to be free.
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
from hybridmoe.planning.prefill_split import PLACES

__all__ = ["COPY_THREADS", "Piece", "WeightStream", "fill"]

COPY_THREADS = 3  # the pieces of an expert: gate, up, down


class Piece(NamedTuple):
    """Bytes, and where they begin in a place."""

    offset: int
    data: NDArray[np.uint8]


class WeightStream:
    """One thread's. `main` is the stream that multiplies, `link` one that only copies experts."""

    def __init__(self, num_bytes: int, device: torch.device, main: Stream, link: Stream) -> None:
        """num_bytes: of the largest expert."""
        self._main, self._link = main, link
        self._buffers = [host_empty((num_bytes,), torch.uint8, device) for _ in range(PLACES)]
        self._places = [
            torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(PLACES)
        ]
        self._sent: list[Event] = [link.record() for _ in range(PLACES)]  # the buffer is free
        self._used: list[Event] = [main.record() for _ in range(PLACES)]  # the place is free
        self._turn = 0
        self._threads = ThreadPoolExecutor(COPY_THREADS, "expert-copy")

    @contextmanager
    def bring(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """A place (bytes,) uint8 on the card that holds the pieces for what `main` is given inside.

        Returns before they are there; `main` waits for them.
        """
        turn, self._turn = self._turn, (self._turn + 1) % PLACES
        buffer, place = self._buffers[turn], self._places[turn]
        self._sent[turn].wait()
        end = fill(self._threads, buffer, pieces)
        self._link.wait_for(self._used[turn])
        self._link.copy(place[:end], buffer[:end])
        self._sent[turn] = self._link.record()
        self._main.wait_for(self._sent[turn])
        try:
            yield place
        finally:
            self._used[turn] = self._main.record()

    def close(self) -> None:
        """End the threads. Any number of times."""
        self._threads.shutdown()


def fill(threads: ThreadPoolExecutor, buffer: Tensor, pieces: Sequence[Piece]) -> int:
    """Copy the pieces to their places in `buffer`, all at once; where the last one ends."""
    bytes = buffer.numpy()

    def copy(piece: Piece) -> int:
        end = piece.offset + piece.data.nbytes
        np.copyto(bytes[piece.offset : end], piece.data)  # without the GIL
        return end

    return max(threads.map(copy, pieces))

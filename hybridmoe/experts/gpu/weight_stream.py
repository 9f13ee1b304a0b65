"""Streaming of experts to a GPU that keeps none of them: host weights in, device buffers out.

A ring of device buffers: copies are queued far ahead of the products, so that the link never waits
for the program. From registered memory the GPU's copy engine reads the weights where they are.
Others are staged: threads copy them into a small ring of pinned memory, which stays in the CPU's
cache. Streams wait for each other through events; the host waits only for a free pinned piece.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.gpu.host_registration import HostRegistration, host_view
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.kernels.matrix import QuantMatrix

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["PIECE_BYTES", "HostExperts", "SlotPart", "WeightStream", "fill"]

# Of pinned memory: small enough for the CPU's cache, long enough for the link's full rate.
NUM_PIECES, PIECE_BYTES = 4, 8 << 20


class SlotPart(NamedTuple):
    """Host bytes of an expert, and their offset in a slot."""

    offset: int
    data: Tensor  # (bytes,) uint8


class HostExperts:
    """One layer's experts in host memory, as a slot takes them."""

    def __init__(self, experts: ExpertWeights, layout: "SlotLayout") -> None:
        self.layout = layout
        self._owner = experts  # of the memory
        offsets = (0, layout.up_offset, layout.down_offset)
        self._matrices = [
            (offset, _view(w)) for offset, w in zip(offsets, experts, strict=True)
        ]  # (E, bytes) uint8

    def parts(self, expert: int) -> list[SlotPart]:
        """List the bytes of one expert and their offsets in a slot."""
        return [SlotPart(offset, matrix[expert]) for offset, matrix in self._matrices]

    def last(self) -> list[SlotPart]:
        """List the parts of the last expert."""
        return self.parts(-1)


class WeightStream:
    """Ring of device buffers. Not thread-safe. Must be closed.

    Buffers are filled in a fixed order, each once it has been released.
    """

    def __init__(
        self,
        num_buffers: int,
        num_bytes: int,
        device: torch.device,
        main: Stream,
        link: Stream,
        threads: _C.CopyThreads,
        registration: HostRegistration | None = None,
    ) -> None:
        """num_bytes: of the largest expert. main: stream that multiplies. link: copies only.

        threads: copy what is not registered. registration: closed with this.
        """
        self.data = torch.empty((num_buffers, num_bytes), dtype=torch.uint8, device=device)
        self._main, self._link, self._threads = main, link, threads
        self._registration = registration
        shape = (NUM_PIECES, max(1, min(num_bytes, PIECE_BYTES)))
        self._pinned = host_empty(shape, torch.uint8, device)
        self._sent: list[Event] = [link.record() for _ in range(NUM_PIECES)]
        self._next_piece = 0
        self._used: list[Event] = [main.record() for _ in range(num_buffers)]
        self._arrived: list[Event] = [link.record() for _ in range(num_buffers)]
        self._is_free = [True] * num_buffers
        self._next = 0

    @property
    def num_buffers(self) -> int:
        return len(self.data)

    @property
    def can_start(self) -> bool:
        """True if the next buffer is free."""
        return self._is_free[self._next]

    def next_buffers(self, count: int) -> list[int]:
        """List the buffers that the next `count` starts take."""
        return [(self._next + i) % self.num_buffers for i in range(count)]

    @property
    def registered_bytes(self) -> int:
        return 0 if self._registration is None else self._registration.num_bytes

    def is_direct(self, parts: Sequence[SlotPart]) -> bool:
        """Return True if `start` only queues copies, all memory being registered."""
        registration = self._registration
        return registration is not None and all(
            piece.is_registered
            for part in parts
            for piece in registration.pieces(part.data.data_ptr(), part.data.nbytes)
        )

    def start(self, parts: Sequence[SlotPart]) -> int:
        """Queue the copies of an expert into the next buffer, which must be free; returns it."""
        number = self._next
        assert self._is_free[number], f"buffer {number} is in use"
        self._is_free[number], self._next = False, (number + 1) % self.num_buffers
        self._link.wait_for(self._used[number])
        for offset, source in parts:
            self._copy(self.data[number, offset : offset + source.nbytes], source)
        self._arrived[number] = self._link.record()
        return number

    def wait_for(self, number: int) -> None:
        """Let `main` wait for a buffer, and for all that were started before it."""
        self._main.wait_for(self._arrived[number])

    def arrival(self, number: int) -> Event:
        """Return the event of a buffer's last copy, after which its source is not read any more."""
        return self._arrived[number]

    def release(self, numbers: Sequence[int]) -> None:
        """Free buffers, once the work that `main` has so far is done."""
        used = self._main.record()
        for number in numbers:
            self._used[number], self._is_free[number] = used, True

    def release_all(self) -> None:
        """Free all buffers."""
        self.release([number for number, is_free in enumerate(self._is_free) if not is_free])

    def register(self, wait_s: float) -> None:
        """Begin to register the experts' memory; wait for that up to `wait_s`."""
        if self._registration is not None:
            self._registration.begin(wait_s)

    def close(self) -> None:
        """Wait for the copies; end the registration. Idempotent."""
        self._link.synchronize()
        if self._registration is not None:
            self._registration.close()

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self._registration is None:
            self._stage(target, source)
            return
        for start, end, is_registered in self._registration.pieces(
            source.data_ptr(), source.nbytes
        ):
            copy = self._link.copy if is_registered else self._stage
            copy(target[start:end], source[start:end])

    def _stage(self, target: Tensor, source: Tensor) -> None:
        """Copy through pinned memory; returns when the last piece is queued."""
        piece_bytes = self._pinned.shape[1]
        for start in range(0, source.nbytes, piece_bytes):
            number = self._next_piece
            self._next_piece = (number + 1) % NUM_PIECES
            end = min(source.nbytes, start + piece_bytes)
            piece = self._pinned[number, : end - start]
            self._sent[number].wait()
            fill(self._threads, piece, source[start:end])
            self._link.copy(target[start:end], piece)
            self._sent[number] = self._link.record()


def fill(threads: _C.CopyThreads, target: Tensor, source: Tensor) -> None:
    """Copy host bytes into `target`, of the same size."""
    assert target.nbytes == source.nbytes, (target.shape, source.shape)
    threads.copy(target.data_ptr(), source.data_ptr(), source.nbytes)


def _view(w: QuantMatrix) -> Tensor:
    """View a stack of matrices as (batch, bytes)."""
    data = host_view(w.data.ctypes.data, w.data.nbytes)
    return data.as_strided((w.batch, w.matrix_bytes), (w.stride, 1))

"""Uploads of experts to VRAM slots, between steps: a ring of pinned memory, a copy stream.

A GPU copies asynchronously, and at the link's full rate, only from pinned memory. From memory that
is registered with it, its copy engine reads an expert beside the next step. Elsewhere the kernels'
threads copy the expert into the ring first, in pieces, while they have nothing to compute. Rows of
a type with planes (`kernels.triton.packing`) are reordered on the GPU, by copies of their fields. A
thread of its own beside the steps cost them as much time as it copied (docs/log.md): it took a core
that a layer's kernels were waiting for.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.gpu.host_registration import HostRegistration, host_view
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.packing import has_planes, packed_row_bytes, planes
from hybridmoe.planning.layer_cost import UPLOAD_PIECE_BYTES

if TYPE_CHECKING:
    import numpy as np

    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["BytesOf", "SlotUpload", "SlotUploader"]

# Layer index, expert -> its gate, up and down in the file's blocks.
BytesOf = Callable[[int, int], "Sequence[NDArray[np.uint8]]"]

_LEAST_PIECES, _MOST_PIECES = 8, 24  # of pinned memory


class _Piece(NamedTuple):
    """Bytes of a matrix in the file."""

    data: "NDArray[np.uint8]"
    target: Tensor  # in a slot: as many bytes, or packed rows (n, bytes)
    packed: QuantType | None  # the type of packed rows


class SlotUpload:
    """`expert_cache.Upload` of a `SlotUploader`."""

    def __init__(self, pieces: deque[_Piece]) -> None:
        self.error: Exception | None = None
        self._pieces = pieces
        self._end: Event | None = None

    @property
    def is_open(self) -> bool:
        """True while pieces are left to copy."""
        return bool(self._pieces)

    def is_done(self) -> bool:
        if self._pieces:
            return False
        try:
            return self._end is None or self._end.is_done()
        except Exception as error:
            self.error = error
            return True

    def cancel(self) -> None:
        self._pieces.clear()

    def fail(self, error: Exception) -> None:
        """End without the rest."""
        self.error = error
        self.cancel()

    def next_piece(self) -> _Piece:
        """Return the first piece that is not in the stream yet."""
        return self._pieces[0]

    def advance(self, end: Event) -> None:
        """Note that this piece is in the stream, up to this event."""
        self._end = end
        self._pieces.popleft()


class SlotUploader:
    """`expert_cache.Uploader` of a model's experts. Not thread-safe."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout]",
        slots: Tensor,
        main: Stream,
        copy: Stream,
        *,
        piece_bytes: int = UPLOAD_PIECE_BYTES,
        ring_bytes: int = 0,
        bytes_of: BytesOf | None = None,
    ) -> None:
        """layouts: of slots, by layer index. slots: (slots, bytes) uint8 on the GPU.

        bytes_of: finds experts in memory; None = in the memory map. main: the stream that reads
        slots. copy: a stream with no other work. ring_bytes: that a step uploads; within limits, as
        much memory is pinned.
        """
        self.slot_bytes = slots.shape[1]
        self._layers = experts.by_index
        self._bytes_of = bytes_of or self._mapped
        self._offsets = [(0, s.up_offset, s.down_offset) for s in layouts]
        self._slots = slots
        self._main, self._copy = main, copy
        packed_rows = [
            w.row_bytes for weights in self._layers for w in weights if has_planes(w.type)
        ]
        self._piece_bytes = piece_bytes
        size = max(piece_bytes, *packed_rows, 0)  # a piece has whole rows of these
        num_pieces = min(max(_LEAST_PIECES, -(-ring_bytes // size)), _MOST_PIECES)
        self._ring = host_empty((num_pieces, size), torch.uint8, slots.device)
        staged_bytes = size if packed_rows else 0
        self._staged = torch.empty(staged_bytes, dtype=torch.uint8, device=slots.device)
        self._events: list[Event | None] = [None] * num_pieces  # the last copy from each piece
        self._next = 0  # piece of the ring
        self.registration: HostRegistration | None = None  # of the experts' memory; not closed
        self._queue: deque[SlotUpload] = deque()

    def begin(self, layer_index: int, expert: int, slot: int) -> SlotUpload:
        pieces: deque[_Piece] = deque()
        upload = SlotUpload(pieces)
        try:
            target = self._slots[slot]
        except IndexError as error:
            upload.fail(error)
            return upload
        matrices = zip(
            self._layers[layer_index],
            self._bytes_of(layer_index, expert),
            self._offsets[layer_index],
            strict=True,
        )
        for w, data, offset in matrices:
            pieces += self._pieces(w, data, target[offset:])
        self._copy.wait_for(self._main)  # steps that may read the slot
        self._queue.append(upload)
        return upload

    def advance(self, num_bytes: int) -> None:
        """Copy some bytes; fewer where the link is not as fast. Failures are the uploads'."""
        with torch.inference_mode():  # the slots may have been allocated in it
            while self._queue and num_bytes > 0:
                upload = self._queue[0]
                if not upload.is_open:  # done or cancelled
                    self._queue.popleft()
                    continue
                try:
                    piece = upload.next_piece()
                    if self._is_registered(piece):
                        self._copy_piece(piece, _host_view(piece.data))
                        upload.advance(self._copy.record())
                    elif self._is_free():
                        upload.advance(self._stage_piece(piece))
                    else:
                        return
                    num_bytes -= len(piece.data)
                except Exception as error:
                    upload.fail(error)

    def close(self) -> None:
        self._queue.clear()
        self._copy.synchronize()

    def _is_free(self) -> bool:
        last_copy = self._events[self._next]
        return last_copy is None or last_copy.is_done()

    def _mapped(self, layer_index: int, expert: int) -> "list[NDArray[np.uint8]]":
        return [w.slice(expert, expert + 1).data for w in self._layers[layer_index]]

    def _pieces(
        self, w: QuantMatrix, data: "NDArray[np.uint8]", target: Tensor
    ) -> Iterator[_Piece]:
        """List the pieces of one expert's matrix. target: of a slot, from its first byte on."""
        row_bytes = w.row_bytes
        if not has_planes(w.type):
            for start in range(0, len(data), self._piece_bytes):
                end = min(start + self._piece_bytes, len(data))
                yield _Piece(data[start:end], target[start:end], None)
            return
        packed_bytes = packed_row_bytes(w.type, w.cols)
        rows = target[: w.rows * packed_bytes].view(w.rows, packed_bytes)
        step = max(1, self._piece_bytes // row_bytes)
        for row in range(0, w.rows, step):
            end = min(row + step, w.rows)
            yield _Piece(data[row * row_bytes : end * row_bytes], rows[row:end], w.type)

    def _is_registered(self, piece: _Piece) -> bool:
        return self.registration is not None and self.registration.covers(
            piece.data.ctypes.data, len(piece.data)
        )

    def _stage_piece(self, piece: _Piece) -> Event:
        """Copy a piece through the ring."""
        data = piece.data
        number, self._next = self._next, (self._next + 1) % len(self._ring)
        pinned = self._ring[number, : len(data)]
        _C.copy_memory(pinned.data_ptr(), data.ctypes.data, len(data))
        self._copy_piece(piece, pinned)
        event = self._events[number] = self._copy.record()
        return event

    def _copy_piece(self, piece: _Piece, source: Tensor) -> None:
        """Queue a piece's copy from memory that the GPU may read."""
        _, target, kind = piece
        if kind is None:
            self._copy.copy(target, source)
            return
        staged = self._staged[: len(source)]
        self._copy.copy(staged, source)
        for plane, field in planes(staged.view(len(target), -1), kind, target):
            self._copy.copy(plane, field)


def _host_view(data: "NDArray[np.uint8]") -> Tensor:
    return host_view(data.ctypes.data, len(data))

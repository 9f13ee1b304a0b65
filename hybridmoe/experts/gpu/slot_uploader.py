"""Uploads of experts to VRAM slots, between steps: a ring of pinned memory, a copy stream.

A GPU copies asynchronously, and at the link's full rate, only from pinned memory. So the kernels'
threads copy an expert into the ring in pieces, while they have nothing to compute; from there it
crosses the link beside the next step. A thread of its own beside the steps cost them as much time
as it copied (docs/log.md): it took a core that a layer's kernels were waiting for.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.routed_experts import RoutedExperts

if TYPE_CHECKING:
    import numpy as np

    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["SlotUpload", "SlotUploader"]

# Long enough for all threads and few calls of the driver; a result of the CPU that is copied, too,
# waits for one of them at most: 80 us at 50 GB/s.
_PIECE_BYTES = 4 << 20
_NUM_PIECES = 8


class SlotUpload:
    """`expert_cache.Upload` of a `SlotUploader`."""

    def __init__(self, pieces: "deque[tuple[Tensor, NDArray[np.uint8]]]") -> None:
        """pieces: where they go on the GPU, and the bytes."""
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

    def next_piece(self) -> "tuple[Tensor, NDArray[np.uint8]]":
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
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        """layouts: by layer index. slots: (slots, bytes) uint8 on the GPU.

        main: the stream that reads slots. copy: a stream with no other work.
        """
        self.slot_bytes = slots.shape[1]
        self._layers = experts.by_index
        self._offsets = [(0, s.up_offset, s.down_offset) for s in layouts]
        self._slots = slots
        self._main, self._copy = main, copy
        self._ring = host_empty((_NUM_PIECES, piece_bytes), torch.uint8, slots.device)
        self._events: list[Event | None] = [None] * _NUM_PIECES  # the last copy from each piece
        self._next = 0  # piece of the ring
        self._queue: deque[SlotUpload] = deque()

    def begin(self, layer_index: int, expert: int, slot: int) -> SlotUpload:
        pieces: deque[tuple[Tensor, NDArray[np.uint8]]] = deque()
        upload, piece_bytes = SlotUpload(pieces), self._ring.shape[1]
        try:
            target = self._slots[slot]
        except IndexError as error:
            upload.fail(error)
            return upload
        matrices = self._layers[layer_index]
        for w, offset in zip(matrices, self._offsets[layer_index], strict=True):
            size = w.rows * w.row_bytes
            for start in range(0, size, piece_bytes):
                count = min(piece_bytes, size - start)
                first = expert * size + start
                place = target[offset + start : offset + start + count]
                pieces.append((place, w.data[first : first + count]))
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
                    target, source = upload.next_piece()
                    if not self._is_free():
                        return
                    upload.advance(self._copy_piece(target, source))
                    num_bytes -= len(source)
                except Exception as error:
                    upload.fail(error)

    def close(self) -> None:
        self._queue.clear()
        self._copy.synchronize()

    def _is_free(self) -> bool:
        last_copy = self._events[self._next]
        return last_copy is None or last_copy.is_done()

    def _copy_piece(self, target: Tensor, source: "NDArray[np.uint8]") -> Event:
        number, self._next = self._next, (self._next + 1) % len(self._ring)
        piece = self._ring[number, : len(source)]
        _C.copy_memory(piece.data_ptr(), source.ctypes.data, len(source))
        self._copy.copy(target, piece)
        event = self._events[number] = self._copy.record()
        return event

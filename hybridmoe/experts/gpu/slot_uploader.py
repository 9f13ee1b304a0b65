"""Copies experts into slots on a card: one thread, a ring of page-locked memory, a stream.

The card copies by itself, and at the link's full rate, only from page-locked memory, and pages of a
mapped file cannot be locked: the thread brings an expert into a ring in pieces, and each piece is
copied on while the next is read.
"""

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.routed_experts import RoutedExperts

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["SlotUploader"]

# Copies take turns on the link, whatever their stream: the CPU's results wait for one of these
# pieces at most, 40 us at 25 GB/s.
_PIECE_BYTES = 1 << 20
_NUM_PIECES = 8


class SlotUpload:
    """One expert on its way: `vram_cache.Upload`."""

    def __init__(self, layer: int, expert: int, slot: int) -> None:
        self.layer, self.expert, self.slot = layer, expert, slot
        self.is_cancelled = False
        self.error: Exception | None = None
        self._end: Event | None = None
        self._is_queued = True  # cleared last: what is written before is then there

    def is_done(self) -> bool:
        """Whether nothing will be written to the slot any more."""
        if self._is_queued:
            return False
        try:
            return self._end is None or self._end.is_done()
        except Exception as error:
            self.error = error
            return True

    def cancel(self) -> None:
        """Copy no further piece."""
        self.is_cancelled = True

    def finish(self, end: Event | None, error: Exception | None = None) -> None:
        """All copies are in the stream; end: the last one's."""
        self._end, self.error = end, error
        self._is_queued = False


class SlotUploader:
    """`vram_cache.Copier` of the experts of a model."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout]",
        data: Tensor,
        main: Stream,
        copy: Stream,
        *,
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        """layouts: of each layer. data: (slots, bytes) uint8 on the card.

        main: where slots are read. copy: a stream of the copies' own.
        """
        self.slot_bytes = data.shape[1]
        self._layers = experts.by_index
        self._offsets = [(0, s.up_offset, s.down_offset) for s in layouts]
        self._data = data
        self._main, self._copy = main, copy
        self._ring = host_empty((_NUM_PIECES, piece_bytes), torch.uint8, data.device)
        self._events: list[Event | None] = [None] * _NUM_PIECES  # the last copy from each
        self._turn = 0
        self._queue: SimpleQueue[SlotUpload | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="expert uploads", daemon=True)
        self._is_closing = False
        self._thread.start()

    def begin(self, layer: int, expert: int, slot: int) -> SlotUpload:
        """As `Copier.begin`."""
        upload = SlotUpload(layer, expert, slot)
        self._copy.wait_for(self._main)  # which may read the slot until then
        self._queue.put(upload)
        return upload

    def close(self) -> None:
        """End the thread and its copies. Any number of times."""
        if not self._is_closing:
            self._is_closing = True
            self._queue.put(None)
            self._thread.join()
            self._copy.synchronize()

    def _work(self) -> None:
        with torch.inference_mode():  # the slots may have been made in it
            while (upload := self._queue.get()) is not None:
                try:
                    upload.finish(self._upload(upload))
                except Exception as error:
                    upload.finish(None, error)

    def _upload(self, upload: SlotUpload) -> Event | None:
        """Put the copies of an expert into the stream; the end of the last."""
        end: Event | None = None
        slot, piece_bytes = self._data[upload.slot], self._ring.shape[1]
        matrices = self._layers[upload.layer]
        for w, offset in zip(matrices, self._offsets[upload.layer], strict=True):
            size = w.rows * w.row_bytes
            source = w.data[upload.expert * size : (upload.expert + 1) * size]
            for start in range(0, size, piece_bytes):
                if upload.is_cancelled or self._is_closing:
                    return end
                part = source[start : start + piece_bytes]
                target = slot[offset + start : offset + start + len(part)]
                end = self._copy_on(target, part)
        return end

    def _copy_on(self, target: Tensor, part: np.ndarray) -> Event:
        """Through the next piece of the ring, when the copy that it last held is done."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self._ring)
        if (before := self._events[turn]) is not None:
            before.wait()
        piece = self._ring[turn, : len(part)]
        np.copyto(piece.numpy(), part)  # without the GIL
        self._copy.copy(target, piece)
        event = self._events[turn] = self._copy.record()
        return event

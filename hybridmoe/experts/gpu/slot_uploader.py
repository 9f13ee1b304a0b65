"""Uploads of experts to VRAM slots: a thread, a ring of pinned memory, a copy stream.

A GPU copies asynchronously, and at the link's full rate, only from pinned memory, and pages of a
mapped file cannot be pinned. So the thread copies an expert into the ring in chunks, each of which
goes on to the GPU while the next is read.
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

__all__ = ["SlotUpload", "SlotUploader"]

# Copies of all streams take turns on the link: the CPU's results wait for one of these chunks at
# most, 40 us at 25 GB/s.
_CHUNK_BYTES = 1 << 20
_NUM_CHUNKS = 8


class SlotUpload:
    """`expert_cache.Upload` of a `SlotUploader`."""

    def __init__(self, layer_index: int, expert: int, slot: int) -> None:
        self.layer_index, self.expert, self.slot = layer_index, expert, slot
        self.is_cancelled = False
        self.error: Exception | None = None
        self._end: Event | None = None
        self._is_queued = True  # cleared last: publishes what was written before

    def is_done(self) -> bool:
        if self._is_queued:
            return False
        try:
            return self._end is None or self._end.is_done()
        except Exception as error:
            self.error = error
            return True

    def cancel(self) -> None:
        self.is_cancelled = True

    def finish(self, end: Event | None, error: Exception | None = None) -> None:
        """Note that all copies are in the stream; end: of the last one."""
        self._end, self.error = end, error
        self._is_queued = False


class SlotUploader:
    """`expert_cache.Uploader` of a model's experts."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout]",
        slots: Tensor,
        main: Stream,
        copy: Stream,
        *,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        """layouts: by layer index. slots: (slots, bytes) uint8 on the GPU.

        main: the stream that reads slots. copy: a stream with no other work.
        """
        self.slot_bytes = slots.shape[1]
        self._layers = experts.by_index
        self._offsets = [(0, s.up_offset, s.down_offset) for s in layouts]
        self._slots = slots
        self._main, self._copy = main, copy
        self._ring = host_empty((_NUM_CHUNKS, chunk_bytes), torch.uint8, slots.device)
        self._events: list[Event | None] = [None] * _NUM_CHUNKS  # the last copy from each chunk
        self._next = 0  # chunk
        self._queue: SimpleQueue[SlotUpload | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="expert uploads", daemon=True)
        self._is_closing = False
        self._thread.start()

    def begin(self, layer_index: int, expert: int, slot: int) -> SlotUpload:
        upload = SlotUpload(layer_index, expert, slot)
        self._copy.wait_for(self._main)  # steps that may read the slot
        self._queue.put(upload)
        return upload

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._queue.put(None)
            self._thread.join()
            self._copy.synchronize()

    def _work(self) -> None:
        with torch.inference_mode():  # the slots may have been allocated in it
            while (upload := self._queue.get()) is not None:
                try:
                    upload.finish(self._upload(upload))
                except Exception as error:
                    upload.finish(None, error)

    def _upload(self, upload: SlotUpload) -> Event | None:
        """Queue an expert's copies in the stream; return the end of the last."""
        end: Event | None = None
        slot, chunk_bytes = self._slots[upload.slot], self._ring.shape[1]
        matrices = self._layers[upload.layer_index]
        for w, offset in zip(matrices, self._offsets[upload.layer_index], strict=True):
            size = w.rows * w.row_bytes
            source = w.data[upload.expert * size : (upload.expert + 1) * size]
            for start in range(0, size, chunk_bytes):
                if upload.is_cancelled or self._is_closing:
                    return end
                chunk = source[start : start + chunk_bytes]
                target = slot[offset + start : offset + start + len(chunk)]
                end = self._copy_chunk(target, chunk)
        return end

    def _copy_chunk(self, target: Tensor, source: np.ndarray) -> Event:
        """Copy through the next chunk of the ring, once its last copy is done."""
        number, self._next = self._next, (self._next + 1) % len(self._ring)
        if (last_copy := self._events[number]) is not None:
            last_copy.wait()
        chunk = self._ring[number, : len(source)]
        np.copyto(chunk.numpy(), source)  # releases the GIL
        self._copy.copy(target, chunk)
        event = self._events[number] = self._copy.record()
        return event

"""Copies of experts from VRAM slots back to the host, between steps, behind the uploads.

They share the uploads' stream, so that a slot may be filled again as soon as its copy is queued.
Packed rows (`kernels.triton.packing`) become the file's blocks again on the GPU. Bytes arrive in
pinned memory, of which there is little: what finds none of it free is read from the file instead.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.packing import has_planes, packed_row_bytes, planes

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["Download", "SlotDownloader"]

_STAGED_BYTES = 1 << 20  # of packed rows, at a time


class Download:
    """An expert on its way to pinned memory."""

    def __init__(self, parts: list[Tensor], buffer: int, end: Event) -> None:
        """parts: gate, up and down (bytes,) uint8, once it `is_done`."""
        self.parts, self.buffer = parts, buffer
        self._end = end

    def is_done(self) -> bool:
        """Return True once the bytes are there. Errors: torch's, of a copy that failed."""
        return self._end.is_done()


class SlotDownloader:
    """Copies from the slots of a model's experts. Not thread-safe."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout]",
        slots: Tensor,
        copy: Stream,
        *,
        num_buffers: int,
    ) -> None:
        """layouts: of slots, by layer index. slots: (slots, bytes) uint8 on the GPU.

        copy: the stream of the uploads. num_buffers: experts on their way at once.
        """
        self._layers, self._slots, self._copy = experts.by_index, slots, copy
        self._offsets = [(0, s.up_offset, s.down_offset) for s in layouts]
        most = max(weights.expert_bytes for weights in self._layers)
        self._pinned = host_empty((num_buffers, most), torch.uint8, slots.device)
        self._free = list(range(num_buffers))
        packed = [w.row_bytes for layer in self._layers for w in layer if has_planes(w.type)]
        size = max(_STAGED_BYTES, *packed) if packed else 0
        self._staged = torch.empty(size, dtype=torch.uint8, device=slots.device)

    def begin(self, layer_index: int, slot: int) -> Download | None:
        """Queue the copy of a slot's expert; None if no pinned memory is free."""
        if not self._free:
            return None
        buffer = self._free.pop()
        parts, start = [], 0
        with torch.inference_mode():  # the slots may have been allocated in it
            for w, offset in zip(
                self._layers[layer_index], self._offsets[layer_index], strict=True
            ):
                size = w.rows * w.row_bytes
                part = self._pinned[buffer, start : start + size]
                self._copy_part(part, w, self._slots[slot, offset:])
                parts.append(part)
                start += size
        return Download(parts, buffer, self._copy.record())

    def end(self, download: Download) -> None:
        """Free the memory of a download that is done."""
        self._free.append(download.buffer)

    def _copy_part(self, target: Tensor, w: QuantMatrix, source: Tensor) -> None:
        """Queue the copy of a matrix. source: of a slot, from its first byte on."""
        if not has_planes(w.type):
            self._copy.copy(target, source[: target.nbytes])
            return
        packed_bytes = packed_row_bytes(w.type, w.cols)
        rows = source[: w.rows * packed_bytes].view(w.rows, packed_bytes)
        step = len(self._staged) // w.row_bytes
        for row in range(0, w.rows, step):
            end = min(row + step, w.rows)
            staged = self._staged[: (end - row) * w.row_bytes]
            blocks = staged.view(end - row, w.row_bytes)
            for plane, field in planes(blocks, w.type, rows[row:end]):
                self._copy.copy(field, plane)
            self._copy.copy(target[row * w.row_bytes : end * w.row_bytes], staged)

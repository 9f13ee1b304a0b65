"""Stack of quantised matrices in VRAM: GGUF blocks, or packed rows."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.gguf import quant_types
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.dequant import KINDS
from hybridmoe.kernels.triton.packing import has_planes, pack, packed_row_bytes
from hybridmoe.kernels.triton.runtime import check_device_tensor
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS

__all__ = ["MATRIX_TYPES", "TYPES", "DeviceMatrix", "row_bytes"]

TYPES = tuple(QuantType[kind] for kind in KINDS)
MATRIX_TYPES = (*TYPES, QuantType.F32)  # products in float32 are torch's

_PACKED_BYTES = 64 << 20  # at a time, copied before they are reordered


def row_bytes(kind: QuantType, cols: int) -> int:
    """Count the bytes of a row. Raises ShapeError: no Triton kernel, or no whole blocks."""
    if kind not in TYPES:
        names = ", ".join(t.name for t in TYPES)
        raise ShapeError(f"type {kind.name} has no Triton kernel (supported: {names})")
    weights = quant_types.block_layout(kind).weights
    if cols < 1 or cols % weights:
        raise ShapeError(f"{cols} columns, expected a multiple of {weights} for {kind.name}")
    return quant_types.row_bytes(kind, cols)


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """Stack of `batch` row-major matrices (rows, cols) in one of MATRIX_TYPES.

    Shapes:  data (batch * rows * row_bytes,) uint8, contiguous, on the device: rows in the file's
             blocks, or of `packing.pack` if is_packed.
    Errors:  ShapeError: a type without a kernel, cols not whole blocks, or data of another size.
    """

    data: Tensor
    type: QuantType
    batch: int
    rows: int
    cols: int
    is_packed: bool = False

    def __post_init__(self) -> None:
        num_bytes = self.batch * self.rows * self.row_bytes
        check_device_tensor(self.data, "DeviceMatrix: data", (torch.uint8,), (num_bytes,))

    @property
    def row_bytes(self) -> int:
        if self.type == QuantType.F32:
            return 4 * self.cols
        file_bytes = row_bytes(self.type, self.cols)
        return packed_row_bytes(self.type, self.cols) if self.is_packed else file_bytes

    @property
    def has_vectors(self) -> bool:
        """True if the kernels of `vectors` can read it: 16 bytes at a time."""
        return self.type.name in VECTOR_KINDS and has_planes(self.type) == self.is_packed

    @classmethod
    def empty(
        cls, kind: QuantType, sizes: tuple[int, int, int], device: torch.device | str
    ) -> Self:
        """Allocate a stack of (batch, rows, cols) as `from_host` does."""
        batch, rows, cols = sizes
        is_packed = has_planes(kind)
        nothing = cls(torch.empty(0, dtype=torch.uint8, device=device), kind, 0, 0, cols, is_packed)
        num_bytes = batch * rows * nothing.row_bytes
        data = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return cls(data, kind, batch, rows, cols, is_packed)

    @classmethod
    def from_host(cls, w: QuantMatrix, device: torch.device | str) -> Self:
        """Copy `w` to `device`, packed where the type has planes."""
        if not has_planes(w.type):
            data = torch.from_numpy(w.data.copy()).to(device)  # a mapped file is read-only
            return cls(data, w.type, w.batch, w.rows, w.cols)
        out = cls.empty(w.type, (w.batch, w.rows, w.cols), device)
        rows = out.data.view(-1, out.row_bytes)
        step = max(1, _PACKED_BYTES // out.row_bytes)
        for first in range(0, len(rows), step):
            last = min(first + step, len(rows))
            part = w.data[first * w.row_bytes : last * w.row_bytes].copy()
            pack(torch.from_numpy(part).to(device).view(last - first, -1), w.type, rows[first:last])
        return out

"""Stack of quantised matrices in GGUF blocks, in VRAM."""

from dataclasses import dataclass
from typing import Self

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.dequant import KINDS
from hybridmoe.kernels.triton.runtime import check_device_tensor

__all__ = ["MATRIX_TYPES", "TYPES", "DeviceMatrix", "row_bytes"]

TYPES = tuple(GGMLQuantizationType[kind] for kind in KINDS)
MATRIX_TYPES = (*TYPES, GGMLQuantizationType.F32)  # products in float32 are torch's


def row_bytes(kind: GGMLQuantizationType, cols: int) -> int:
    """Count the bytes of a row. Raises ShapeError: no Triton kernel, or no whole blocks."""
    if kind not in TYPES:
        names = ", ".join(t.name for t in TYPES)
        raise ShapeError(f"type {kind.name} has no Triton kernel (supported: {names})")
    weights, num_bytes = GGML_QUANT_SIZES[kind]
    if cols < 1 or cols % weights:
        raise ShapeError(f"{cols} columns, expected a multiple of {weights} for {kind.name}")
    return int(cols // weights * num_bytes)


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """Stack of `batch` row-major matrices (rows, cols) in one of MATRIX_TYPES.

    Shapes:  data (batch * rows * bytes of a row,) uint8, contiguous, on the device.
    Errors:  ShapeError: a type without a kernel, cols not whole blocks, or data of another size.
    """

    data: Tensor
    type: GGMLQuantizationType
    batch: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        num_bytes = self.batch * self.rows * self.row_bytes
        check_device_tensor(self.data, "DeviceMatrix: data", (torch.uint8,), (num_bytes,))

    @property
    def row_bytes(self) -> int:
        if self.type == GGMLQuantizationType.F32:
            return 4 * self.cols
        return row_bytes(self.type, self.cols)

    @classmethod
    def from_host(cls, w: QuantMatrix, device: torch.device | str) -> Self:
        """Copy `w` to `device`, byte for byte."""
        data = torch.from_numpy(w.data.copy()).to(device)  # a view of a mapped file is read-only
        return cls(data, w.type, w.batch, w.rows, w.cols)

"""Stack of quantised matrices, exactly as a GGUF file lays them out.

`QuantMatrix` owns no bytes: `data` is a view of the memory map (or of an array). Matrices may lie
apart, as the gates of experts do where gate and up are one tensor, and have factors (NVFP4).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType, row_bytes

__all__ = ["QuantMatrix"]


@dataclass(frozen=True, slots=True)
class QuantMatrix:
    """Stack of `batch` row-major matrices (rows, cols) in a GGUF block format.

    Shapes:  data (num_bytes,) uint8, contiguous, aligned to the type's scalars · scales (batch,)
             f32, factors of the matrices.
    Errors:  ShapeError: unknown type, cols not whole blocks, or data of another size.
    """

    data: np.ndarray
    type: QuantType
    batch: int
    rows: int
    cols: int
    stride: int = 0  # bytes from a matrix to the next; 0 = `matrix_bytes`
    scales: NDArray[np.float32] | None = None
    handle: _C.Matrix = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        data = self.data
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            raise ShapeError(
                f"QuantMatrix: data is {data.dtype} {data.shape}, expected contiguous uint8 (n,)"
            )
        sizes = (self.batch, self.rows, self.cols)
        if not all(0 <= size < 2**40 for size in sizes):
            raise ShapeError(f"QuantMatrix: shape {sizes} is not usable")
        scales = self.scales
        if scales is not None and (scales.dtype != np.float32 or scales.shape != (self.batch,)):
            raise ShapeError(
                f"QuantMatrix: scales are {scales.dtype} {scales.shape}, expected float32"
                f" ({self.batch},)"
            )
        handle = _C.Matrix(
            data.ctypes.data,
            data.nbytes,
            int(self.type),
            *sizes,
            self.stride,
            0 if scales is None else scales.ctypes.data,
        )
        object.__setattr__(self, "handle", handle)
        object.__setattr__(self, "stride", self.stride or self.matrix_bytes)

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.type, self.cols)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one matrix."""
        return self.rows * self.row_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices, without what lies between them."""
        return self.batch * self.matrix_bytes

    def slice(self, b0: int, b1: int) -> "QuantMatrix":
        """View matrices b0..b1-1 of the stack."""
        if not 0 <= b0 <= b1 <= self.batch:
            raise ShapeError(f"QuantMatrix: slice {b0}:{b1} of a stack of {self.batch}")
        end = (b1 - 1) * self.stride + self.matrix_bytes if b1 > b0 else b0 * self.stride
        return QuantMatrix(
            self.data[b0 * self.stride : end],
            self.type,
            b1 - b0,
            self.rows,
            self.cols,
            self.stride,
            None if self.scales is None else self.scales[b0:b1],
        )

    def slice_rows(self, r0: int, r1: int) -> "QuantMatrix":
        """View rows r0..r1-1 of each matrix."""
        if not 0 <= r0 <= r1 <= self.rows:
            raise ShapeError(f"QuantMatrix: slice {r0}:{r1} of {self.rows} rows")
        end = self.data.nbytes - (self.rows - r1) * self.row_bytes
        return QuantMatrix(
            self.data[r0 * self.row_bytes : end],
            self.type,
            self.batch,
            r1 - r0,
            self.cols,
            self.stride,
            self.scales,
        )

    @classmethod
    def from_array(cls, a: np.ndarray) -> Self:
        """View `a` (N, K) or (B, N, K) as an F32 matrix; copies if it is not contiguous."""
        if a.dtype != np.float32 or a.ndim not in (2, 3):
            raise ShapeError(f"QuantMatrix: array is {a.dtype} {a.shape}, expected float32 (N, K)")
        batch, rows, cols = (1, *a.shape)[-3:]
        data = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        return cls(data, QuantType.F32, batch, rows, cols)

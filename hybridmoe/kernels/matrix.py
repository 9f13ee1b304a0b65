"""Stack of quantised matrices, exactly as a GGUF file lays them out.

`QuantMatrix` owns no bytes: `data` is a view of the memory map (or of an array).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from gguf import GGMLQuantizationType

from hybridmoe import _C
from hybridmoe.errors import ShapeError

__all__ = ["QuantMatrix"]


@dataclass(frozen=True, slots=True)
class QuantMatrix:
    """Stack of `batch` row-major matrices (rows, cols) in a GGUF block format.

    Shapes:  data (num_bytes,) uint8, contiguous, aligned to the type's scalars.
    Errors:  ShapeError: unknown type, cols not whole blocks, or data of another size.
    """

    data: np.ndarray
    type: GGMLQuantizationType
    batch: int
    rows: int
    cols: int
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
        handle = _C.Matrix(data.ctypes.data, data.nbytes, int(self.type), *sizes)
        object.__setattr__(self, "handle", handle)

    @property
    def row_bytes(self) -> int:
        _, weights, num_bytes, _ = _C.TYPES[self.type]
        return self.cols // weights * num_bytes

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def slice(self, b0: int, b1: int) -> "QuantMatrix":
        """View matrices b0..b1-1 of the stack."""
        if not 0 <= b0 <= b1 <= self.batch:
            raise ShapeError(f"QuantMatrix: slice {b0}:{b1} of a stack of {self.batch}")
        matrix_bytes = self.rows * self.row_bytes
        data = self.data[b0 * matrix_bytes : b1 * matrix_bytes]
        return QuantMatrix(data, self.type, b1 - b0, self.rows, self.cols)

    @classmethod
    def from_array(cls, a: np.ndarray) -> Self:
        """View `a` (N, K) or (B, N, K) as an F32 matrix; copies if it is not contiguous."""
        if a.dtype != np.float32 or a.ndim not in (2, 3):
            raise ShapeError(f"QuantMatrix: array is {a.dtype} {a.shape}, expected float32 (N, K)")
        batch, rows, cols = (1, *a.shape)[-3:]
        data = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        return cls(data, GGMLQuantizationType.F32, batch, rows, cols)

"""Search for NaN and infinity in a file: in float tensors and in the scales of blocks.

A tensor is read from its file in pieces, not through the memory map: a truncated file is an error
here, not a signal.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from hybridmoe import _C
from hybridmoe.errors import DiskError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile, Tensor
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import dequantize

__all__ = ["Damage", "find_damage", "is_checkable"]

_PIECE_BYTES = 256 << 10  # dequantized, it stays in a core's cache
_INTEGERS = frozenset(QuantType[name] for name in ("I8", "I16", "I32", "I64"))


@dataclass(frozen=True, slots=True)
class Damage:
    """First row of a matrix, or the vector, with a number that is not finite."""

    tensor: str
    type: str
    matrix: int | None  # of a stack: the expert's number, or the head's
    row: int | None  # None: a vector

    def __str__(self) -> str:
        stack = "expert" if "_exps." in self.tensor else "matrix"
        places = ((stack, self.matrix), ("row", self.row))
        at = ", ".join(f"{name} {number}" for name, number in places if number is not None)
        return f"{printable(self.tensor)} ({self.type}): {at or 'the vector'} holds NaN or infinity"


def is_checkable(tensor: Tensor) -> bool:
    """Return True for tensors of a type that `find_damage` knows."""
    return tensor.type in _INTEGERS or tensor.type in _C.TYPES


def find_damage(
    file: GGUFFile,
    tensor: Tensor,
    matrices: Iterable[int] | None = None,
    rows: range | None = None,
) -> Iterator[Damage]:
    """Find the damage of each matrix of a tensor; matrices, rows: None = all.

    Errors: DiskError if the file cannot be read, or is shorter than when it was opened.
    """
    if tensor.type in _INTEGERS or not is_checkable(tensor) or not tensor.num_bytes:
        return
    is_vector, is_stack = len(tensor.shape) < 2, len(tensor.shape) > 2
    num_rows, cols = (1, *tensor.shape)[-2:]
    count = prod(tensor.shape[:-2])
    row_bytes = tensor.num_bytes // (count * num_rows)
    path = file.parts[tensor.part]
    try:
        with open(path, "rb", buffering=0) as part:
            for i in range(count) if matrices is None else matrices:
                start = tensor.offset + i * num_rows * row_bytes
                matrix = (part.fileno(), start, row_bytes, tensor.type, cols)
                row = _first_bad_row(*matrix, range(num_rows) if rows is None else rows)
                if row is not None:
                    name, kind = tensor.name, tensor.type.name
                    yield Damage(name, kind, i if is_stack else None, None if is_vector else row)
    except OSError as error:
        what = error.strerror or "it is shorter than when it was opened"
        raise DiskError(f"{printable(path.name)}: {printable(tensor.name)}: {what}") from None


def _first_bad_row(
    fd: int, start: int, row_bytes: int, kind: QuantType, cols: int, rows: range
) -> int | None:
    step = max(1, _PIECE_BYTES // row_bytes)
    for first in range(rows.start, rows.stop, step):
        num_rows = min(step, rows.stop - first)
        piece = np.empty(num_rows * row_bytes, np.uint8)
        if os.preadv(fd, [piece.data], start + first * row_bytes) != piece.size:
            raise OSError
        values = dequantize(QuantMatrix(piece, kind, 1, num_rows, cols))  # (rows, cols)
        if not torch.isfinite(values.sum()):
            is_bad = ~torch.isfinite(values).all(1)
            if is_bad.any():  # large numbers may have a sum that is not finite
                return first + int(is_bad.nonzero()[0])
    return None

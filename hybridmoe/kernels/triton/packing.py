"""Order of a row's bytes in VRAM: that of the file, or planes.

Blocks of Q8_0, Q4_0 and Q6_K (34, 18 and 210 bytes) begin at odd multiples of two bytes, but a GPU
loads 16 bytes from multiples of 16 only. So a packed row has planes: one field of all its blocks,
then the next field of all. The bytes are the same, in another order, and up to 14 zeros behind, so
that each row begins at a multiple of 16.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridmoe.gguf.quant_types import QuantType, block_layout, row_bytes

__all__ = ["has_planes", "pack", "packed_row_bytes", "planes"]

_ALIGNMENT = 16

_FIELDS = {  # offset and size in a block, in the order of the planes: codes first
    "Q8_0": ((2, 32), (0, 2)),
    "Q4_0": ((2, 16), (0, 2)),
    "Q6_K": ((0, 128), (128, 64), (192, 16), (208, 2)),
}


def has_planes(kind: QuantType) -> bool:
    """True for the types that `pack` is for."""
    return kind.name in _FIELDS


def packed_row_bytes(kind: QuantType, cols: int) -> int:
    """Count the bytes of a packed row; `cols` are whole blocks."""
    return -(-row_bytes(kind, cols) // _ALIGNMENT) * _ALIGNMENT


def pack(blocks: Tensor, kind: QuantType, out: Tensor) -> None:
    """Copy rows of blocks to `out`, reordered.

    Shapes:  blocks (n, bytes of a row) uint8, contiguous · out (n, packed_row_bytes) uint8, on the
             same device. What is behind the planes becomes zero.
    """
    used = blocks.shape[1]
    for target, source in planes(blocks, kind, out):
        target.copy_(source)
    out[:, used:] = 0


def planes(blocks: Tensor, kind: QuantType, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """View each field of rows of blocks, and its plane in `out`: target, source (n, blocks, words).

    Words of two bytes: fewer for a GPU to copy. Shapes as of `pack`.
    """
    words = blocks.view(torch.int16).view(len(blocks), -1, block_layout(kind).num_bytes // 2)
    target, start = out.view(torch.int16), 0
    for offset, size in _FIELDS[kind.name]:
        end = start + words.shape[1] * size // 2
        plane = target[:, start:end].unflatten(1, (-1, size // 2))
        yield plane, words[:, :, offset // 2 : (offset + size) // 2]
        start = end

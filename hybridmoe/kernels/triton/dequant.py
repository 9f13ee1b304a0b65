"""GGUF blocks to float32 in registers: one function per format, inlined into every kernel.

A function dequantizes a chunk of 256 neighbouring weights of each of ROWS rows: one block of a K
type, eight of the smaller ones. `row`: addresses of the rows' first bytes; `chunk`: number of the
chunk in a row; `limit`: blocks in a row. Beyond it, and where `row_ok` is false, nothing is read
and weights are zero. `books`: of `codebooks.codebooks`; most types do not use it.
Codes are loaded as a tile (ROWS, groups, weights of a group) and scales as (ROWS, groups), so that
a thread with several codes of a group loads and unpacks its scale once.
Every row begins at an even address, except MXFP4's, which is read by bytes.

Products are summed in the tile's own shape, axis by axis. A reshape to (ROWS, 256) comes before
`tl.dot` and stores only: Triton 3.4 to 3.6 reduce wrongly along an axis that a reshape made, where
the lanes along it are not neighbours (Q4_K with 8 rows on an H100: sums of other rows, no warning).
"""

import triton
import triton.language as tl

from hybridmoe.gguf.quant_types import QuantType, block_layout
from hybridmoe.kernels.triton.dequant_32 import (
    iq4_nl,
    mxfp4,
    q1_0,
    q2_0,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q6_0,
    q8_0,
)
from hybridmoe.kernels.triton.dequant_256 import (
    iq4_xs,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    tq1_0,
    tq2_0,
)
from hybridmoe.kernels.triton.dequant_ik import (
    iq2_k,
    iq2_kl,
    iq2_ks,
    iq3_k,
    iq3_ks,
    iq4_k,
    iq4_ks,
    iq4_kss,
    iq5_k,
    iq5_ks,
    iq6_k,
)
from hybridmoe.kernels.triton.dequant_iq import (
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
)

__all__ = [
    "CHUNK", "KINDS", "chunk_limit", "columns", "dequantize_rows", "dequantize_tile", "sum_tile",
    "zeros",
]  # fmt: skip

CHUNK = 256

KINDS = (
    "BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0", "Q6_0", "IQ2_K", "IQ2_KS", "IQ2_KL", "IQ3_K",
    "IQ3_KS", "IQ4_K", "IQ4_KS", "IQ4_KSS", "IQ5_K", "IQ5_KS", "IQ6_K",
)  # fmt: skip


def chunk_limit(kind: str, cols: int) -> int:
    """Count the blocks of a row of `cols` weights: `limit` of the kernels."""
    return cols // block_layout(QuantType[kind]).weights


@triton.jit
def _plain(row, chunk, limit, row_ok, IS_BF16: tl.constexpr):
    k = chunk * 256 + tl.arange(0, 256)
    mask = row_ok[:, None] & (k < limit)[None, :]
    if IS_BF16:  # pointers to numbers, not to bytes: the compiler sees that they lie together
        address = row.to(tl.pointer_type(tl.uint16))[:, None] + k[None, :]
        bits = tl.load(address, mask=mask, other=0).to(tl.uint32)
        w = (bits << 16).to(tl.float32, bitcast=True)
    else:
        address = row.to(tl.pointer_type(tl.float16))[:, None] + k[None, :]
        w = tl.load(address, mask=mask, other=0.0).to(tl.float32)
    return w


@triton.jit
def columns(KIND: tl.constexpr):
    """Make 0 ... 255 in the shape of the type's tile, with a first axis of one row."""
    if (KIND == "BF16") | (KIND == "F16"):
        k = tl.arange(0, 256)[None, :]
    elif (KIND == "IQ3_XXS") | (KIND == "IQ3_S"):
        k = (4 * tl.arange(0, 64)[:, None] + tl.arange(0, 4)[None, :])[None, :, :]
    elif (
        (KIND == "IQ1_S")
        | (KIND == "IQ1_M")
        | (KIND == "IQ2_XXS")
        | (KIND == "IQ2_XS")
        | (KIND == "IQ2_S")
    ):
        k = (8 * tl.arange(0, 32)[:, None] + tl.arange(0, 8)[None, :])[None, :, :]
    elif (
        (KIND == "Q2_K")
        | (KIND == "Q3_K")
        | (KIND == "Q6_K")
        | (KIND == "TQ1_0")
        | (KIND == "TQ2_0")
        | (KIND == "IQ2_K")
        | (KIND == "IQ2_KS")
        | (KIND == "IQ3_K")
        | (KIND == "IQ3_KS")
        | (KIND == "IQ5_K")
        | (KIND == "IQ5_KS")
        | (KIND == "IQ6_K")
    ):
        k = (16 * tl.arange(0, 16)[:, None] + tl.arange(0, 16)[None, :])[None, :, :]
    elif (
        (KIND == "Q8_0") | (KIND == "Q4_K") | (KIND == "Q5_K") | (KIND == "Q1_0") | (KIND == "Q2_0")
    ):
        k = (32 * tl.arange(0, 8)[:, None] + tl.arange(0, 32)[None, :])[None, :, :]
    elif KIND == "IQ2_KL":
        pair = 2 * tl.arange(0, 16)[None, None, :, None] + tl.arange(0, 2)[None, None, None, :]
        k = 32 * tl.arange(0, 8)[None, :, None, None] + pair
    else:
        half = 16 * tl.arange(0, 2)[None, None, :, None] + tl.arange(0, 16)[None, None, None, :]
        k = 32 * tl.arange(0, 8)[None, :, None, None] + half
    return k


@triton.jit
def zeros(KIND: tl.constexpr, ROWS: tl.constexpr):
    """Make a tile to add products to."""
    acc = tl.zeros((ROWS,), tl.float32)
    k = columns(KIND)
    for _ in tl.static_range(len(k.shape) - 1):
        acc = tl.expand_dims(acc, len(acc.shape))
    return acc + 0.0 * k.to(tl.float32)


@triton.jit
def sum_tile(tile):
    """Sum a tile over columns: (ROWS,)."""
    for _ in tl.static_range(len(tile.shape) - 1):
        tile = tl.sum(tile, len(tile.shape) - 1)
    return tile


@triton.jit
def dequantize_rows(
    row,
    chunk,
    limit,
    row_ok,
    books,
    KIND: tl.constexpr,
    IS_PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Dequantize a tile as (ROWS, 256), not to be reduced."""
    return tl.reshape(
        dequantize_tile(row, chunk, limit, row_ok, books, KIND, IS_PACKED), (ROWS, 256)
    )


@triton.jit
def dequantize_tile(
    row, chunk, limit, row_ok, books, KIND: tl.constexpr, IS_PACKED: tl.constexpr = False
):
    """Weights 256 chunk ... + 255 of the rows: f32 in a tile, zeros beyond the row.

    IS_PACKED: rows are of `packing.pack`, if the type has planes.
    """
    if KIND == "BF16":
        w = _plain(row, chunk, limit, row_ok, True)
    elif KIND == "F16":
        w = _plain(row, chunk, limit, row_ok, False)
    elif KIND == "Q8_0":
        w = q8_0(row, chunk, limit, row_ok, IS_PACKED)
    elif KIND == "Q4_0":
        w = q4_0(row, chunk, limit, row_ok, IS_PACKED)
    elif KIND == "Q4_1":
        w = q4_1(row, chunk, limit, row_ok)
    elif KIND == "Q5_0":
        w = q5_0(row, chunk, limit, row_ok)
    elif KIND == "Q5_1":
        w = q5_1(row, chunk, limit, row_ok)
    elif KIND == "Q2_K":
        w = q2_k(row, chunk, limit, row_ok)
    elif KIND == "Q3_K":
        w = q3_k(row, chunk, limit, row_ok)
    elif KIND == "Q4_K":
        w = q4_k(row, chunk, limit, row_ok)
    elif KIND == "Q5_K":
        w = q5_k(row, chunk, limit, row_ok)
    elif KIND == "Q6_K":
        w = q6_k(row, chunk, limit, row_ok, IS_PACKED)
    elif KIND == "IQ1_S":
        w = iq1_s(row, chunk, limit, row_ok, books)
    elif KIND == "IQ1_M":
        w = iq1_m(row, chunk, limit, row_ok, books)
    elif KIND == "IQ2_XXS":
        w = iq2_xxs(row, chunk, limit, row_ok, books)
    elif KIND == "IQ2_XS":
        w = iq2_xs(row, chunk, limit, row_ok, books)
    elif KIND == "IQ2_S":
        w = iq2_s(row, chunk, limit, row_ok, books)
    elif KIND == "IQ3_XXS":
        w = iq3_xxs(row, chunk, limit, row_ok, books)
    elif KIND == "IQ3_S":
        w = iq3_s(row, chunk, limit, row_ok, books)
    elif KIND == "IQ4_NL":
        w = iq4_nl(row, chunk, limit, row_ok)
    elif KIND == "IQ4_XS":
        w = iq4_xs(row, chunk, limit, row_ok)
    elif KIND == "TQ1_0":
        w = tq1_0(row, chunk, limit, row_ok)
    elif KIND == "TQ2_0":
        w = tq2_0(row, chunk, limit, row_ok)
    elif KIND == "Q1_0":
        w = q1_0(row, chunk, limit, row_ok)
    elif KIND == "Q2_0":
        w = q2_0(row, chunk, limit, row_ok)
    elif KIND == "Q6_0":
        w = q6_0(row, chunk, limit, row_ok)
    elif KIND == "IQ2_K":
        w = iq2_k(row, chunk, limit, row_ok)
    elif KIND == "IQ2_KS":
        w = iq2_ks(row, chunk, limit, row_ok)
    elif KIND == "IQ2_KL":
        w = iq2_kl(row, chunk, limit, row_ok, books)
    elif KIND == "IQ3_K":
        w = iq3_k(row, chunk, limit, row_ok)
    elif KIND == "IQ3_KS":
        w = iq3_ks(row, chunk, limit, row_ok)
    elif KIND == "IQ4_K":
        w = iq4_k(row, chunk, limit, row_ok)
    elif KIND == "IQ4_KS":
        w = iq4_ks(row, chunk, limit, row_ok)
    elif KIND == "IQ4_KSS":
        w = iq4_kss(row, chunk, limit, row_ok)
    elif KIND == "IQ5_K":
        w = iq5_k(row, chunk, limit, row_ok, books)
    elif KIND == "IQ5_KS":
        w = iq5_ks(row, chunk, limit, row_ok, books)
    elif KIND == "IQ6_K":
        w = iq6_k(row, chunk, limit, row_ok, books)
    else:
        tl.static_assert(KIND == "MXFP4")
        w = mxfp4(row, chunk, limit, row_ok)
    return w

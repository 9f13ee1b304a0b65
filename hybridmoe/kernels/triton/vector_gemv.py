"""Products of one to four tokens with quantized matrices whose codes are loaded 16 bytes at a time.

See `vectors` for the arithmetic. A program has a tile (tokens, repeats, warps, row lanes, column
lanes): by Triton's default layout the last two axes are the 32 lanes of a warp, and a thread has
all of the first two. Each warp takes other columns of the same rows. A program reads all columns,
so its sums are final.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED
from hybridmoe.kernels.triton.vectors import dot_vectors, load_x

__all__ = ["MAX_VECTOR_TOKENS", "VectorPlan", "plan_vectors", "vector_gemv"]

MAX_VECTOR_TOKENS = 4  # of 8, a thread's x and sums do not fit its registers
# Rows of a thread. The interpreter runs one program after the other, however many rows they have.
REPEATS = 128 if IS_INTERPRETED else 4
_MOST_REPEATS = 128 if IS_INTERPRETED else 8  # where a vector's codes need few registers

_ALIGNED_FLOATS = 4  # x is loaded 16 bytes at a time


class VectorPlan(NamedTuple):
    """Tile of a program: rows = repeats * row_lanes."""

    repeats: int
    num_warps: int
    row_lanes: int


def plan_vectors(kind: str, num_tokens: int, num_cols: int) -> VectorPlan:
    """Plan a tile by the matrix's type and columns, from measurements on an H100 (docs/log.md).

    A lane's numbers of x serve `repeats` rows. Few columns need few warps.
    """
    num_vectors = num_cols // 32
    if num_vectors < 64:
        return VectorPlan(REPEATS, 1, 8 if num_vectors <= 4 else 1)
    if num_tokens > 1 or kind == "Q6_K":
        return VectorPlan(REPEATS, 4, 1)
    return VectorPlan(_MOST_REPEATS, 4, 1)


def vector_gemv(x: Tensor, w: DeviceMatrix, out: Tensor) -> Tensor:
    """Compute out (B, T, N) of x (B, T, K) and w with vectors, T up to MAX_VECTOR_TOKENS."""
    batch, tokens, cols = x.shape
    if any(n % _ALIGNED_FLOATS for n in (x.storage_offset(), *x.stride()[:2])):
        x = x.clone(memory_format=torch.contiguous_format)
    plan = plan_vectors(w.type.name, tokens, cols)
    grid = (triton.cdiv(w.rows, plan.repeats * plan.row_lanes), batch)
    _vector_kernel[grid](
        x,
        w.data,
        out,
        tokens,
        w.rows,
        cols,
        w.row_bytes,
        *x.stride()[:2],
        *out.stride()[:2],
        TOKENS=triton.next_power_of_2(tokens),
        KIND=w.type.name,
        REPEATS=plan.repeats,
        WARPS=plan.num_warps,
        ROW_LANES=plan.row_lanes,
        num_warps=plan.num_warps,
    )
    return out


@triton.jit(
    do_not_specialize=[
        "num_tokens",
        "num_rows",
        "x_batch_stride",
        "x_token_stride",
        "out_batch_stride",
    ],
    do_not_specialize_on_alignment=["out_ptr"],
)
def _vector_kernel(
    x_ptr,
    w_ptr,
    out_ptr,
    num_tokens,
    num_rows,
    num_cols,
    row_bytes,
    x_batch_stride,
    x_token_stride,
    out_batch_stride,
    out_token_stride,
    TOKENS: tl.constexpr,
    KIND: tl.constexpr,
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
    ROW_LANES: tl.constexpr,
):
    """Multiply REPEATS * ROW_LANES rows of one matrix with up to TOKENS tokens."""
    LANES: tl.constexpr = 32 // ROW_LANES
    b = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, ROW_LANES)[None, :]
    rows = (
        tl.program_id(0) * (REPEATS * ROW_LANES) + ROW_LANES * tl.arange(0, REPEATS)[:, None] + lane
    )
    row = w_ptr + (b * num_rows + tl.minimum(rows, num_rows - 1)) * row_bytes
    row = row[None, :, None, :, None]
    token = tl.arange(0, TOKENS)
    x_token = tl.minimum(token, num_tokens - 1).to(tl.int64) * x_token_stride
    x_ptr += b * x_batch_stride + x_token[:, None, None, None, None]
    place = LANES * tl.arange(0, WARPS)[:, None] + tl.arange(0, LANES)[None, :]
    num_vectors = num_cols // 32
    sums = tl.zeros((TOKENS, REPEATS, WARPS, ROW_LANES, LANES), tl.float32)
    for first in range(0, num_vectors, WARPS * LANES):
        v = first + place[None, None, :, None, :]
        is_real = v < num_vectors
        v = tl.minimum(v, num_vectors - 1)
        products = dot_vectors(row, num_cols, v, load_x(x_ptr, v, KIND), KIND)
        sums += tl.where(is_real, products, 0.0)
    out = out_ptr + b * out_batch_stride + token[:, None, None] * out_token_stride + rows[None]
    is_real = (token < num_tokens)[:, None, None] & (rows < num_rows)[None]
    tl.store(out, tl.sum(tl.sum(sums, 4), 2), mask=is_real)

"""Products with quantised matrices on the GPU, straight from GGUF blocks.

Up to MAX_GEMV_TOKENS one kernel reads the blocks once and dequantizes them in registers: a single
token (up to four, of the types of `vectors`) by float32 multiply-adds, more by tensor cores with
both sides rounded to bfloat16. Above, slabs of the matrix are dequantized to bfloat16 and
multiplied by torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.triton.codebooks import codebooks
from hybridmoe.kernels.triton.dequant import (
    CHUNK,
    chunk_limit,
    columns,
    dequantize_rows,
    dequantize_tile,
    sum_tile,
    zeros,
)
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.kernels.triton.runtime import (
    DOT_TYPE,
    check_device_rows,
    num_multiprocessors,
)
from hybridmoe.kernels.triton.vector_gemv import MAX_VECTOR_TOKENS, vector_gemv
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS

__all__ = ["MAX_GEMV_TOKENS", "GemvPlan", "batched_linear", "dequantize", "linear", "plan_gemv"]

MAX_GEMV_TOKENS = PREFILL_TOKENS
BLOCK_ROWS = 16  # of a program; also the smallest dimension of a tensor core product
SLAB_BYTES = 64 << 20  # dequantized weights at a time: about the size of a GPU's L2 cache

_TOKENS = tl.constexpr(MAX_GEMV_TOKENS)

# The switch of TF32. Torch 2.9 renamed it; the old name cannot be read where the new one is set.
_IS_NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
_PRECISION, _FULL = ("fp32_precision", "ieee") if _IS_NEW else ("allow_tf32", False)


class GemvPlan(NamedTuple):
    """Launch of a gemv: `num_splits` programs share the columns of `block_rows` rows."""

    block_rows: int
    num_splits: int
    chunks_per_split: int


def gemv_rows(kind: str, *, is_one: bool) -> int:
    """Count the rows of a program, for one token or several.

    Every program of several tokens reads all of x, 16 tokens as much as 28 rows of Q4_K. So it has
    64 rows, or 32 of the types whose unpacking takes more registers; of IQ4_KS,
    IQ4_KSS and IQ5_KS 32 do not fit.
    """
    if is_one or kind in ("IQ4_KS", "IQ4_KSS", "IQ5_KS"):
        return BLOCK_ROWS
    return 64 if kind in (*VECTOR_KINDS, "BF16", "F16") else 32


def plan_gemv(
    num_rows: int, num_chunks: int, num_sms: int, block_rows: int = BLOCK_ROWS
) -> GemvPlan:
    """Plan enough bytes in flight to cover the latency of memory, by Little's law.

    A GPU of 1 to 3.4 TB/s with 600 ns of latency needs 0.6 to 2 MB in flight, 5 to 16 KB for each
    of 130 multiprocessors. A program holds 16 rows of one chunk, 2.3 KB at Q4_K. Five programs of
    four warps fit by their registers (80 to 96 a thread on sm_89) and have 11.5 KB. The columns are
    split where rows alone give fewer than eight programs (three waiting, so that none idles at the
    end). A split has at least two chunks, since it writes 4 bytes per row and token that are read
    again.

    Programs of more rows have eight warps: two of 64 rows fit a multiprocessor.
    """
    programs = 8 if block_rows == BLOCK_ROWS else 192 // block_rows
    tiles = triton.cdiv(num_rows, block_rows)
    splits = max(1, min(triton.cdiv(programs * num_sms, tiles), num_chunks // 2))
    chunks_per_split = triton.cdiv(num_chunks, splits)
    return GemvPlan(block_rows, triton.cdiv(num_chunks, chunks_per_split), chunks_per_split)


def linear(x: Tensor, w: DeviceMatrix, out: Tensor | None = None) -> Tensor:
    """Compute x W^T.

    Shapes:  x (T, K) f32 · w one matrix (N, K) -> (T, N) f32, in `out` where that is given. Rows of
             both anywhere.
    Cost:    reads w once up to MAX_GEMV_TOKENS; above, also writes and reads it as bf16.
    Numeric: sums in f32. One token: weights and x are not rounded. More: both rounded to bf16;
             above MAX_GEMV_TOKENS also the result. F32 matrices: nothing is rounded.
    Errors:  ShapeError.
    """
    if w.batch != 1:
        raise ShapeError(f"linear: w is a stack of {w.batch} matrices, expected one")
    check_device_rows(x, "linear: x", (None, w.cols))
    return batched_linear(x[None], w, None if out is None else out[None])[0]


def batched_linear(x: Tensor, w: DeviceMatrix, out: Tensor | None = None) -> Tensor:
    """Compute x[b] W[b]^T for every matrix of a stack: the per-head products of MLA.

    Shapes:  x (B, T, K) f32 · w B matrices (N, K) -> (B, T, N) f32, in `out` where that is given.
             Rows of both anywhere.
    Numeric: as `linear`.
    Errors:  ShapeError.
    """
    check_device_rows(x, "batched_linear: x", (w.batch, None, w.cols))
    tokens = x.shape[1]
    if out is None:
        out = x.new_empty(w.batch, tokens, w.rows)  # (B, T, N)
    else:
        check_device_rows(out, "batched_linear: out", (w.batch, tokens, w.rows))
    if tokens == 0 or w.rows == 0 or w.batch == 0:
        return out
    if w.type == QuantType.F32:
        weights = w.data.view(torch.float32).view(w.batch, w.rows, w.cols)
        with _full_precision():
            return out.copy_(x @ weights.transpose(1, 2))
    if tokens <= MAX_GEMV_TOKENS:
        return _gemv(x, w, out)
    return _by_slabs(x, w, out)


def _by_slabs(x: Tensor, w: DeviceMatrix, out: Tensor) -> Tensor:
    rounded = x.bfloat16()
    slab_rows = min(w.rows, max(1, SLAB_BYTES // (2 * w.cols)))
    group = max(1, SLAB_BYTES // (2 * w.cols * w.rows))  # of whole matrices
    for b in range(0, w.batch, group):
        count = min(group, w.batch - b)
        for start in range(0, w.rows, slab_rows):
            end = min(start + slab_rows, w.rows)
            weights = _dequantize(w, b * w.rows + start, count * (end - start))
            weights = weights.view(count, end - start, w.cols)
            out[b : b + count, :, start:end] = rounded[b : b + count] @ weights.transpose(1, 2)
    return out


def dequantize(w: DeviceMatrix) -> Tensor:
    """Dequantize every weight to bf16: (B, N, K)."""
    if w.type == QuantType.F32:
        return w.data.view(torch.float32).view(w.batch, w.rows, w.cols).bfloat16()
    return _dequantize(w, 0, w.batch * w.rows).view(w.batch, w.rows, w.cols)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, whatever the program around has set."""
    flags = torch.backends.cuda.matmul
    before = getattr(flags, _PRECISION)
    setattr(flags, _PRECISION, _FULL)
    try:
        yield
    finally:
        setattr(flags, _PRECISION, before)


def _gemv(x: Tensor, w: DeviceMatrix, out: Tensor) -> Tensor:
    """Compute out (B, T, N) of x (B, T, K), T from 1 to MAX_GEMV_TOKENS."""
    batch, tokens, cols = x.shape
    if w.has_vectors and tokens <= MAX_VECTOR_TOKENS:
        return vector_gemv(x, w, out)
    is_one = tokens == 1
    if not is_one:
        x = x.bfloat16().contiguous()  # each program reads all of it
    num_sms, block_rows = num_multiprocessors(x.device), gemv_rows(w.type.name, is_one=is_one)
    plan = plan_gemv(w.rows * batch, triton.cdiv(cols, CHUNK), num_sms, block_rows)
    parts = out[None]
    if plan.num_splits > 1:
        parts = out.new_empty(plan.num_splits, batch, tokens, w.rows)
    grid = (triton.cdiv(w.rows, plan.block_rows), plan.num_splits, batch)
    _gemv_kernel[grid](
        x,
        w.data,
        codebooks(x.device),
        parts,
        tokens,
        w.rows,
        cols,
        x.stride(0),
        *parts.stride()[:3],
        w.row_bytes,
        chunk_limit(w.type.name, cols),
        plan.chunks_per_split,
        IS_ONE=is_one,
        DOT=DOT_TYPE,
        KIND=w.type.name,
        IS_PACKED=w.is_packed,
        ROWS=plan.block_rows,
        num_warps=4 if is_one else 8,  # four spill registers there (Q6_K on sm_89)
        num_stages=2,  # with three, 64 rows do not fit a consumer GPU's shared memory
    )
    return out if plan.num_splits == 1 else torch.sum(parts, 0, out=out)


def _dequantize(w: DeviceMatrix, start: int, num_rows: int) -> Tensor:
    """Dequantize rows start ... of the whole stack to bf16: (num_rows, K)."""
    out = torch.empty((num_rows, w.cols), dtype=torch.bfloat16, device=w.data.device)
    first = start * w.row_bytes
    grid = (triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(w.cols, CHUNK))
    _dequantize_kernel[grid](
        w.data[first:],
        codebooks(out.device),
        out,
        num_rows,
        w.cols,
        w.row_bytes,
        chunk_limit(w.type.name, w.cols),
        KIND=w.type.name,
        IS_PACKED=w.is_packed,
        ROWS=BLOCK_ROWS,
    )
    return out


# Numbers that change with a step or a matrix are not specialised: fewer binaries.
@triton.jit(
    do_not_specialize=[
        "num_tokens",
        "num_rows",
        "part_stride",
        "out_batch_stride",
        "chunks_per_split",
    ]
)
def _gemv_kernel(
    x_ptr,
    w_ptr,
    books_ptr,
    parts_ptr,
    num_tokens,
    num_rows,
    num_cols,
    x_batch_stride,
    part_stride,
    out_batch_stride,
    out_token_stride,
    row_bytes,
    limit,
    chunks_per_split,
    IS_ONE: tl.constexpr,
    DOT: tl.constexpr,
    KIND: tl.constexpr,
    IS_PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Multiply ROWS rows of one matrix over one split of its columns."""
    split = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < num_rows
    row = w_ptr + (b * num_rows + rows) * row_bytes
    parts_ptr += split.to(tl.int64) * part_stride + b * out_batch_stride
    first = split * chunks_per_split
    last = tl.minimum(first + chunks_per_split, tl.cdiv(num_cols, 256))
    if IS_ONE:
        x_ptr += b * x_batch_stride
        acc = zeros(KIND, ROWS)
        for chunk in range(first, last):
            at = chunk * 256 + columns(KIND)
            x = tl.load(x_ptr + at, mask=at < num_cols, other=0.0).to(tl.float32)
            acc += dequantize_tile(row, chunk, limit, row_ok, books_ptr, KIND, IS_PACKED) * x
        tl.store(parts_ptr + rows, sum_tile(acc), mask=row_ok)
    else:
        x_ptr += b * num_tokens * num_cols
        k = tl.arange(0, 256)
        token = tl.arange(0, _TOKENS)
        token_ok = token < num_tokens
        sums = tl.zeros((_TOKENS, ROWS), tl.float32)
        for chunk in range(first, last):
            at = chunk * 256 + k
            mask = token_ok[:, None] & (at < num_cols)[None, :]
            x = tl.load(x_ptr + token[:, None] * num_cols + at[None, :], mask=mask, other=0.0)
            w = dequantize_rows(row, chunk, limit, row_ok, books_ptr, KIND, IS_PACKED, ROWS)
            w = w.to(tl.bfloat16).to(DOT)
            sums = tl.dot(x.to(DOT), tl.trans(w), sums)
        out = parts_ptr + token[:, None] * out_token_stride + rows[None, :]
        tl.store(out, sums, mask=token_ok[:, None] & row_ok[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def _dequantize_kernel(
    w_ptr,
    books_ptr,
    out_ptr,
    num_rows,
    num_cols,
    row_bytes,
    limit,
    KIND: tl.constexpr,
    IS_PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk = tl.program_id(1)
    row_ok = rows < num_rows
    rows = rows.to(tl.int64)
    row = w_ptr + rows * row_bytes
    w = dequantize_rows(row, chunk, limit, row_ok, books_ptr, KIND, IS_PACKED, ROWS)
    k = chunk * 256 + tl.arange(0, 256)
    out = out_ptr + rows[:, None] * num_cols + k[None, :]
    tl.store(out, w.to(tl.bfloat16), mask=row_ok[:, None] & (k < num_cols)[None, :])

"""Experts in VRAM slots by tiles of 256 columns: kernels of `expert_ffn` for every type."""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.dequant import columns, dequantize_tile, sum_tile, zeros
from hybridmoe.kernels.triton.elementwise import swiglu

__all__ = ["down_tiles_kernel", "gate_up_tiles_kernel"]


@triton.jit
def gate_up_tiles_kernel(
    x_ptr,
    slots_ptr,
    data_ptr,
    books_ptr,
    hidden_ptr,
    top_k,
    inter,
    num_cols,
    slot_bytes,
    up_offset,
    gate_row_bytes,
    up_row_bytes,
    gate_limit,
    up_limit,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute ROWS of silu(gate x) * (up x) of one pair of a token and a slot."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.program_id(1)
    row_ok = rows < inter
    slot = tl.load(slots_ptr + pair).to(tl.int64)
    if slot >= 0:
        expert = data_ptr + slot * slot_bytes
        gate_row = expert + rows * gate_row_bytes
        up_row = expert + up_offset + rows * up_row_bytes
        token_ptr = x_ptr + (pair // top_k) * num_cols
        gate = zeros(GATE, ROWS)
        up = zeros(UP, ROWS)
        for chunk in range(0, tl.cdiv(num_cols, 256)):
            at = chunk * 256 + columns(GATE)
            x = tl.load(token_ptr + at, mask=at < num_cols, other=0.0)
            gate += dequantize_tile(gate_row, chunk, gate_limit, row_ok, books_ptr, GATE, True) * x
            if GATE != UP:
                at = chunk * 256 + columns(UP)
                x = tl.load(token_ptr + at, mask=at < num_cols, other=0.0)
            up += dequantize_tile(up_row, chunk, up_limit, row_ok, books_ptr, UP, True) * x
        hidden = swiglu(sum_tile(gate), sum_tile(up))
        tl.store(hidden_ptr + pair * inter + rows, hidden, mask=row_ok)


@triton.jit(do_not_specialize=["top_k", "experts_per_split"])
def down_tiles_kernel(
    hidden_ptr,
    slots_ptr,
    weights_ptr,
    data_ptr,
    books_ptr,
    parts_ptr,
    top_k,
    experts_per_split,
    num_rows,
    inter,
    slot_bytes,
    down_offset,
    row_bytes,
    limit,
    num_chunks,
    DOWN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute ROWS of a token's result: the weighted sum over one split of its experts."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1)
    split = tl.program_id(2)
    row_ok = rows < num_rows
    acc = zeros(DOWN, ROWS)
    first = split * experts_per_split
    for j in range(first, tl.minimum(first + experts_per_split, top_k)):
        pair = t * top_k + j
        slot = tl.load(slots_ptr + pair).to(tl.int64)
        if slot >= 0:
            weight = tl.load(weights_ptr + pair)
            row = data_ptr + slot * slot_bytes + down_offset + rows * row_bytes
            for chunk in range(0, num_chunks):
                at = chunk * 256 + columns(DOWN)
                h = tl.load(hidden_ptr + pair * inter + at, mask=at < inter, other=0.0)
                w = dequantize_tile(row, chunk, limit, row_ok, books_ptr, DOWN, True)
                acc += w * (weight * h)
    at = (split * tl.num_programs(1) + t) * num_rows + rows
    tl.store(parts_ptr + at, sum_tile(acc), mask=row_ok)

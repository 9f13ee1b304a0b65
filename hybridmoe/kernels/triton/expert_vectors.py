"""Experts in VRAM slots by vectors of 16 bytes: kernels of `expert_ffn` for the types of `vectors`.

A program has T lanes, one for each vector of a row, and ROWS rows. Nothing is exchanged between
threads before the last sum.
"""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.elementwise import swiglu
from hybridmoe.kernels.triton.vectors import dot_vectors, load_x

__all__ = ["down_vectors_kernel", "gate_up_vectors_kernel"]


@triton.jit
def gate_up_vectors_kernel(
    x_ptr,
    slots_ptr,
    data_ptr,
    hidden_ptr,
    top_k,
    inter,
    num_cols,
    slot_bytes,
    up_offset,
    gate_row_bytes,
    up_row_bytes,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
):
    """Compute ROWS of silu(gate x) * (up x) of one pair of a token and a slot."""
    pair = tl.program_id(0)  # fastest: programs that read the same rows of an expert run together
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots_ptr + pair).to(tl.int64)
    if slot >= 0:
        expert = data_ptr + slot * slot_bytes
        row = tl.minimum(rows, inter - 1)[:, None]
        gate_row, up_row = expert + row * gate_row_bytes, expert + up_offset + row * up_row_bytes
        token = x_ptr + (pair // top_k) * num_cols
        gate, up = tl.zeros((ROWS, T), tl.float32), tl.zeros((ROWS, T), tl.float32)
        num_vectors = num_cols // 32
        for first in range(0, num_vectors, T):
            v = first + tl.arange(0, T)[None, :]
            ok = v < num_vectors
            v = tl.minimum(v, num_vectors - 1)
            x = load_x(token, v, GATE)
            gate += tl.where(ok, dot_vectors(gate_row, num_cols, v, x, GATE), 0.0)
            if GATE != UP:
                x = load_x(token, v, UP)
            up += tl.where(ok, dot_vectors(up_row, num_cols, v, x, UP), 0.0)
        hidden = swiglu(tl.sum(gate, 1), tl.sum(up, 1))
        tl.store(hidden_ptr + pair * inter + rows, hidden, mask=rows < inter)


@triton.jit(do_not_specialize=["experts_per_split"])
def down_vectors_kernel(
    hidden_ptr,
    slots_ptr,
    weights_ptr,
    data_ptr,
    parts_ptr,
    top_k,
    experts_per_split,
    num_rows,
    inter,
    slot_bytes,
    down_offset,
    row_bytes,
    DOWN: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
):
    """Compute ROWS of a token's result: the weighted sum over one split of its experts."""
    t = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    row_at = tl.minimum(rows, num_rows - 1)[:, None] * row_bytes
    acc = tl.zeros((ROWS, T), tl.float32)
    num_vectors = inter // 32
    first_expert = split * experts_per_split
    for j in range(first_expert, tl.minimum(first_expert + experts_per_split, top_k)):
        pair = t * top_k + j
        slot = tl.load(slots_ptr + pair).to(tl.int64)
        if slot >= 0:
            weight = tl.load(weights_ptr + pair)
            row = data_ptr + slot * slot_bytes + down_offset + row_at
            hidden = hidden_ptr + pair * inter
            for first in range(0, num_vectors, T):
                v = first + tl.arange(0, T)[None, :]
                ok = v < num_vectors
                v = tl.minimum(v, num_vectors - 1)
                y = dot_vectors(row, inter, v, load_x(hidden, v, DOWN), DOWN)
                acc += tl.where(ok, weight * y, 0.0)
    at = (split * tl.num_programs(0) + t) * num_rows + rows
    tl.store(parts_ptr + at, tl.sum(acc, 1), mask=rows < num_rows)

"""Routed experts in VRAM, for decoding: straight from quantised expert slots.

A VRAM expert slot holds the blocks of one expert's gate, up and down matrices contiguously, so that
one copy uploads an expert. Pairs of a token and an expert outside VRAM have slot -1 and are
skipped: the CPU computes them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from gguf import GGMLQuantizationType
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.triton.codebooks import codebooks
from hybridmoe.kernels.triton.dequant import (
    CHUNK,
    chunk_limit,
    columns,
    dequantize_tile,
    sum_tile,
    zeros,
)
from hybridmoe.kernels.triton.matmul import MAX_GEMV_TOKENS
from hybridmoe.kernels.triton.matrix import row_bytes
from hybridmoe.kernels.triton.runtime import check_device_tensor, num_multiprocessors

__all__ = ["SlotLayout", "expert_ffn", "plan_down_splits"]

GATE_ROWS, DOWN_ROWS = 8, 16  # of a program

_ALIGNMENT = 256  # of a slot and its parts, as of CUDA's allocations


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Offsets of an expert's matrices in its slot.

    Errors:  ShapeError: a type without a kernel, or rows that are not whole blocks.
    """

    gate: GGMLQuantizationType  # (I, H)
    up: GGMLQuantizationType  # (I, H)
    down: GGMLQuantizationType  # (H, I)
    hidden: int
    inter: int

    def __post_init__(self) -> None:
        for kind, cols in ((self.gate, self.hidden), (self.up, self.hidden)):
            row_bytes(kind, cols)
        row_bytes(self.down, self.inter)

    @property
    def up_offset(self) -> int:
        return _aligned(self.inter * row_bytes(self.gate, self.hidden))

    @property
    def down_offset(self) -> int:
        return self.up_offset + _aligned(self.inter * row_bytes(self.up, self.hidden))

    @property
    def slot_bytes(self) -> int:
        return self.down_offset + _aligned(self.hidden * row_bytes(self.down, self.inter))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def plan_down_splits(num_tokens: int, top_k: int, hidden: int, num_sms: int) -> int:
    """Count the programs that share the experts of DOWN_ROWS rows of a token's result.

    Five programs of four warps fit a multiprocessor by registers (Q4_K on sm_89: 96 a thread), each
    with 2.3 KB of Q4_K in flight: enough to cover the latency of memory, see `plan_gemv`.
    """
    tiles = num_tokens * -(-hidden // DOWN_ROWS)
    return max(1, min(-(-5 * num_sms // tiles), top_k))


def expert_ffn(
    x: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> Tensor:
    """Compute the weighted SwiGLU output of each token's experts in VRAM.

    Shapes:  x (T, H) f32 or bf16, T <= MAX_GEMV_TOKENS · slots (T, k) int32, -1 = skip ·
             weights (T, k) f32 · data (slots, layout.slot_bytes or more) uint8 -> (T, H) f32.
    Cost:    reads an expert once for each of its tokens, after the first from the L2 cache.
    Numeric: float32 throughout, nothing is rounded in between.
    Errors:  ShapeError. Slots lie in VRAM and are not checked: they must be below len(data).
    Source:  SwiGLU, Shazeer 2020.
    """
    _check_args(x, slots, weights, data, layout)
    if x.shape[0] == 0 or slots.shape[1] == 0:
        return x.new_zeros(x.shape, dtype=torch.float32)
    hidden = _gate_up(x, slots, data, layout)  # (T k, I)
    return _down(hidden, slots, weights, data, layout)


def _check_args(
    x: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> None:
    check_device_tensor(x, "expert_ffn: x", (torch.float32, torch.bfloat16), (None, layout.hidden))
    tokens = x.shape[0]
    check_device_tensor(slots, "expert_ffn: slots", (torch.int32,), (tokens, None))
    top_k = slots.shape[1]
    check_device_tensor(weights, "expert_ffn: weights", (torch.float32,), (tokens, top_k))
    check_device_tensor(data, "expert_ffn: data", (torch.uint8,), (None, None))
    slot_bytes = data.shape[1]  # of the model's largest layer
    if slot_bytes < layout.slot_bytes or slot_bytes % _ALIGNMENT:
        raise ShapeError(
            f"expert_ffn: slots of {slot_bytes} bytes, expected a multiple of {_ALIGNMENT} that is"
            f" at least {layout.slot_bytes}"
        )
    if tokens > MAX_GEMV_TOKENS:
        raise ShapeError(f"expert_ffn: {tokens} tokens, expected at most {MAX_GEMV_TOKENS}")


def _gate_up(x: Tensor, slots: Tensor, data: Tensor, layout: SlotLayout) -> Tensor:
    pairs, top_k = slots.numel(), slots.shape[1]
    hidden = x.new_empty((pairs, layout.inter), dtype=torch.float32)
    _gate_up_kernel[(triton.cdiv(layout.inter, GATE_ROWS), pairs)](
        x,
        slots,
        data,
        codebooks(x.device),
        hidden,
        top_k,
        layout.inter,
        layout.hidden,
        data.shape[1],
        layout.up_offset,
        row_bytes(layout.gate, layout.hidden),
        row_bytes(layout.up, layout.hidden),
        chunk_limit(layout.gate.name, layout.hidden),
        chunk_limit(layout.up.name, layout.hidden),
        GATE=layout.gate.name,
        UP=layout.up.name,
        ROWS=GATE_ROWS,
        num_warps=4,
    )
    return hidden


def _down(
    hidden: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> Tensor:
    tokens, top_k = slots.shape
    splits = plan_down_splits(tokens, top_k, layout.hidden, num_multiprocessors(hidden.device))
    experts_per_split = triton.cdiv(top_k, splits)
    splits = triton.cdiv(top_k, experts_per_split)
    parts = hidden.new_empty((splits, tokens, layout.hidden))
    _down_kernel[(triton.cdiv(layout.hidden, DOWN_ROWS), tokens, splits)](
        hidden,
        slots,
        weights,
        data,
        codebooks(data.device),
        parts,
        top_k,
        experts_per_split,
        layout.hidden,
        layout.inter,
        data.shape[1],
        layout.down_offset,
        row_bytes(layout.down, layout.inter),
        chunk_limit(layout.down.name, layout.inter),
        triton.cdiv(layout.inter, CHUNK),
        DOWN=layout.down.name,
        ROWS=DOWN_ROWS,
        num_warps=4,
    )
    return parts[0] if splits == 1 else parts.sum(0)


@triton.jit
def _gate_up_kernel(
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
            x = tl.load(token_ptr + at, mask=at < num_cols, other=0.0).to(tl.float32)
            gate += dequantize_tile(gate_row, chunk, gate_limit, row_ok, books_ptr, GATE) * x
            if GATE != UP:
                at = chunk * 256 + columns(UP)
                x = tl.load(token_ptr + at, mask=at < num_cols, other=0.0).to(tl.float32)
            up += dequantize_tile(up_row, chunk, up_limit, row_ok, books_ptr, UP) * x
        g = sum_tile(gate)
        e = tl.exp(-tl.abs(g))  # cannot overflow
        hidden = g * tl.where(g < 0, e, 1.0) / (1.0 + e) * sum_tile(up)
        tl.store(hidden_ptr + pair * inter + rows, hidden, mask=row_ok)


@triton.jit(do_not_specialize=["top_k", "experts_per_split"])
def _down_kernel(
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
                acc += dequantize_tile(row, chunk, limit, row_ok, books_ptr, DOWN) * (weight * h)
    at = (split * tl.num_programs(1) + t) * num_rows + rows
    tl.store(parts_ptr + at, sum_tile(acc), mask=row_ok)

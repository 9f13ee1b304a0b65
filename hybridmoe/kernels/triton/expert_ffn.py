"""Routed experts in VRAM, for decoding: straight from quantised expert slots.

A VRAM expert slot holds one expert's gate, up and down matrices, rows in the order of `packing`.
Pairs of a token and an expert outside VRAM have slot -1 and are skipped: the CPU computes them.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
import triton
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.triton.codebooks import codebooks
from hybridmoe.kernels.triton.dequant import CHUNK, chunk_limit
from hybridmoe.kernels.triton.expert_tiles import down_tiles_kernel, gate_up_tiles_kernel
from hybridmoe.kernels.triton.expert_vectors import down_vectors_kernel, gate_up_vectors_kernel
from hybridmoe.kernels.triton.matmul import MAX_GEMV_TOKENS
from hybridmoe.kernels.triton.matrix import row_bytes
from hybridmoe.kernels.triton.packing import has_planes, pack, packed_row_bytes
from hybridmoe.kernels.triton.runtime import (
    IS_INTERPRETED,
    check_device_tensor,
    num_multiprocessors,
)
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS

__all__ = ["SlotLayout", "expert_ffn", "pack_slot", "plan_down_splits", "plan_lanes"]

GATE_ROWS, DOWN_ROWS = 8, 16  # of a program of tiles
# Of a program of vectors. The interpreter runs one after the other, however many rows they have.
VECTOR_ROWS = 32 if IS_INTERPRETED else 4

_ALIGNMENT = 256  # of a slot and its parts, as of CUDA's allocations


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Offsets of an expert's matrices in its slot, or in a buffer that it is streamed to.

    Errors:  ShapeError: a type without a kernel, or rows that are not whole blocks.
    """

    gate: QuantType  # (I, H)
    up: QuantType  # (I, H)
    down: QuantType  # (H, I)
    hidden: int
    inter: int
    is_packed: bool = False  # rows of `packing` where the type has planes; else all as in the file

    def __post_init__(self) -> None:
        for kind, cols in ((self.gate, self.hidden), (self.up, self.hidden)):
            row_bytes(kind, cols)
        row_bytes(self.down, self.inter)

    @property
    def packed(self) -> Self:
        """Layout of slots."""
        return replace(self, is_packed=True)

    @property
    def gate_row_bytes(self) -> int:
        return self.row_bytes(self.gate, self.hidden)

    @property
    def up_row_bytes(self) -> int:
        return self.row_bytes(self.up, self.hidden)

    @property
    def down_row_bytes(self) -> int:
        return self.row_bytes(self.down, self.inter)

    @property
    def up_offset(self) -> int:
        return _aligned(self.inter * self.gate_row_bytes)

    @property
    def down_offset(self) -> int:
        return self.up_offset + _aligned(self.inter * self.up_row_bytes)

    @property
    def slot_bytes(self) -> int:
        return self.down_offset + _aligned(self.hidden * self.down_row_bytes)

    def row_bytes(self, kind: QuantType, cols: int) -> int:
        is_packed = self.is_packed and has_planes(kind)
        return packed_row_bytes(kind, cols) if is_packed else row_bytes(kind, cols)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def pack_slot(expert: Tensor, layout: SlotLayout) -> Tensor:
    """Copy an expert (layout.slot_bytes,) uint8, as in the file, to a slot of its own, packed."""
    packed = layout.packed
    slot = expert.new_zeros(packed.slot_bytes)
    offsets = (0, 0), (layout.up_offset, packed.up_offset), (layout.down_offset, packed.down_offset)
    inter, hidden = layout.inter, layout.hidden
    strides = (
        (layout.gate, inter, layout.gate_row_bytes, packed.gate_row_bytes),
        (layout.up, inter, layout.up_row_bytes, packed.up_row_bytes),
        (layout.down, hidden, layout.down_row_bytes, packed.down_row_bytes),
    )
    for (start, to), (kind, rows, file_bytes, slot_bytes) in zip(offsets, strides, strict=True):
        source = expert[start : start + rows * file_bytes].view(rows, file_bytes)
        target = slot[to : to + rows * slot_bytes].view(rows, slot_bytes)
        if has_planes(kind):
            pack(source, kind, target)
        else:
            target.copy_(source)
    return slot


class LanePlan(NamedTuple):
    """Threads of a program, one a vector of 32 columns, and their warps."""

    lanes: int
    warps: int


def plan_lanes(cols: int) -> LanePlan:
    """Plan lanes that divide a row's vectors: 64, or 32 of a single warp."""
    return LanePlan(64, 2) if cols // 32 % 64 == 0 else LanePlan(32, 1)


def plan_down_splits(num_tokens: int, top_k: int, num_tiles: int, num_sms: int) -> int:
    """Count the programs that share the experts of a tile of a token's result.

    Five programs of four warps, or ten of two, fit a multiprocessor by their registers, each with
    2 KB in flight: enough to cover the latency of memory, see `plan_gemv`.
    """
    return max(1, min(-(-5 * num_sms // (num_tokens * num_tiles)), top_k))


def expert_ffn(
    x: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> Tensor:
    """Compute the weighted SwiGLU output of each token's experts in VRAM.

    Shapes:  x (T, H) f32, T <= MAX_GEMV_TOKENS · slots (T, k) int32, -1 = skip ·
             weights (T, k) f32 · data (slots, layout.slot_bytes or more) uint8 -> (T, H) f32.
             layout: of slots.
    Cost:    reads an expert once for each of its tokens, after the first from the L2 cache.
    Numeric: float32 throughout, nothing is rounded in between.
    Errors:  ShapeError. Slots lie in VRAM and are not checked: they must be below len(data).
    Source:  SwiGLU, Shazeer 2020.
    """
    _check_args(x, slots, weights, data, layout)
    if x.shape[0] == 0 or slots.shape[1] == 0:
        return x.new_zeros(x.shape, dtype=torch.float32)
    assert layout.is_packed, "the layout of a stream's buffer"
    hidden = _gate_up(x, slots, data, layout)  # (T k, I)
    return _down(hidden, slots, weights, data, layout)


def _check_args(
    x: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> None:
    check_device_tensor(x, "expert_ffn: x", (torch.float32,), (None, layout.hidden))
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
    hidden = x.new_empty((pairs, layout.inter))
    sizes = top_k, layout.inter, layout.hidden, data.shape[1], layout.up_offset
    types = {"GATE": layout.gate.name, "UP": layout.up.name}
    strides = layout.gate_row_bytes, layout.up_row_bytes
    if types["GATE"] in VECTOR_KINDS and types["UP"] in VECTOR_KINDS:
        plan = plan_lanes(layout.hidden)
        gate_up_vectors_kernel[(pairs, triton.cdiv(layout.inter, VECTOR_ROWS))](
            x, slots, data, hidden, *sizes, *strides,
            **types, ROWS=VECTOR_ROWS, T=plan.lanes, num_warps=plan.warps,
        )  # fmt: skip
    else:
        limits = (chunk_limit(kind, layout.hidden) for kind in types.values())
        gate_up_tiles_kernel[(triton.cdiv(layout.inter, GATE_ROWS), pairs)](
            x, slots, data, codebooks(x.device), hidden, *sizes, *strides, *limits,
            **types, ROWS=GATE_ROWS, num_warps=4,
        )  # fmt: skip
    return hidden


def _down(
    hidden: Tensor, slots: Tensor, weights: Tensor, data: Tensor, layout: SlotLayout
) -> Tensor:
    tokens, top_k = slots.shape
    kind = layout.down.name
    rows = VECTOR_ROWS if kind in VECTOR_KINDS else DOWN_ROWS
    tiles = triton.cdiv(layout.hidden, rows)
    splits = plan_down_splits(tokens, top_k, tiles, num_multiprocessors(hidden.device))
    per_split = triton.cdiv(top_k, splits)
    splits = triton.cdiv(top_k, per_split)
    parts = hidden.new_empty((splits, tokens, layout.hidden))
    sizes = top_k, per_split, layout.hidden, layout.inter, data.shape[1], layout.down_offset
    if kind in VECTOR_KINDS:
        plan = plan_lanes(layout.inter)
        down_vectors_kernel[(tokens, tiles, splits)](
            hidden, slots, weights, data, parts, *sizes, layout.down_row_bytes,
            DOWN=kind, ROWS=rows, T=plan.lanes, num_warps=plan.warps,
        )  # fmt: skip
    else:
        down_tiles_kernel[(tiles, tokens, splits)](
            hidden, slots, weights, data, codebooks(data.device), parts, *sizes,
            layout.down_row_bytes, chunk_limit(kind, layout.inter),
            triton.cdiv(layout.inter, CHUNK),
            DOWN=kind, ROWS=rows, num_warps=4,
        )  # fmt: skip
    return parts[0] if splits == 1 else parts.sum(0)

"""SwiGLU of a group of experts in VRAM, for any number of tokens: prefill.

A group's matrices are dequantized to bfloat16 and multiplied by tensor cores, all experts in one
launch each: launches cost more than the products of an expert with few tokens. Rows of states are
gathered as they are read, and results are added by token, in a fixed order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.expert_groups import MANY_ROWS, ExpertGroup, LayerStates
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.codebooks import codebooks
from hybridmoe.kernels.triton.dequant import CHUNK, chunk_limit, dequantize_rows
from hybridmoe.kernels.triton.elementwise import swiglu
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.packing import has_planes
from hybridmoe.kernels.triton.runtime import DOT_TYPE, check_device_tensor

__all__ = ["add_experts", "layout_of"]

_DEQUANTIZED_ROWS = 16  # of a program
# Columns of a product's tile, and of weights at a time. Three stages of 128 rows take 96 KiB of
# shared memory, all that a consumer GPU has.
_GATE_COLS, _DOWN_COLS, _STEP, _STAGES = 64, 128, 64, 3
_SUM_TOKENS, _SUM_COLS = 8, 256


def layout_of(gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix) -> SlotLayout | None:
    """Make the layout of experts gate, up (E, I, H), down (E, H, I) as in the file.

    Returns None if a type has no GPU kernel.
    """
    try:
        return SlotLayout(gate.type, up.type, down.type, hidden=gate.cols, inter=gate.rows)
    except ShapeError:
        return None


def add_experts(
    states: LayerStates, group: ExpertGroup, data: Tensor, layout: SlotLayout, rows: int
) -> None:
    """Add the weighted SwiGLU of a group's experts to `states.out`.

    Shapes:  data (slots, layout.slot_bytes or more) uint8. rows: of the tiles, as `tile_rows`.
    Numeric: weights, states and hidden activations rounded to bf16; sums, SiLU and results in f32.
             A token's results are added by rank.
    Errors:  ShapeError. Slots, pairs and tiles lie in VRAM and are not checked.
    """
    _check_args(states, group, data, layout)
    if group.num_pairs == 0:
        return
    hidden, inter, num = layout.hidden, layout.inter, len(group.slots)
    size = (num * 2 * inter * hidden,)
    w = torch.empty(size, dtype=torch.bfloat16, device=data.device)  # all matrices, in turn
    shape = (group.num_pairs, inter)
    act = torch.empty(shape, dtype=torch.bfloat16, device=data.device)
    results = states.out.new_empty((group.num_pairs, hidden))
    gate, up, down = layout.gate, layout.up, layout.down
    _dequantize(w, group, data, layout, 0, (gate, up), inter, hidden)
    options = {
        "M": rows,
        "K": _STEP,
        "DOT": DOT_TYPE,
        "num_warps": 8 if rows == MANY_ROWS else 4,
        "num_stages": _STAGES,
    }
    _gate_up_kernel[(len(group.tiles), triton.cdiv(inter, _GATE_COLS))](
        states.x,
        states.pairs,
        group.tiles,
        w,
        act,
        group.first,
        states.weights.shape[1],
        inter,
        hidden,
        N=_GATE_COLS,
        IS_EVEN=hidden % _STEP == 0,
        **options,
    )
    _dequantize(w, group, data, layout, layout.down_offset, (down,), hidden, inter)
    _down_kernel[(len(group.tiles), triton.cdiv(hidden, _DOWN_COLS))](
        act,
        group.tiles,
        w,
        results,
        group.first,
        inter,
        hidden,
        N=_DOWN_COLS,
        IS_EVEN=inter % _STEP == 0,
        **options,
    )
    num_tokens = len(states.x)
    _sum_kernel[(triton.cdiv(num_tokens, _SUM_TOKENS), triton.cdiv(hidden, _SUM_COLS))](
        results,
        states.places,
        states.weights,
        states.out,
        group.first,
        group.num_pairs,
        num_tokens,
        states.weights.shape[1],
        hidden,
        TOKENS=_SUM_TOKENS,
        BLOCK=_SUM_COLS,
    )


def _check_args(states: LayerStates, group: ExpertGroup, data: Tensor, layout: SlotLayout) -> None:
    tokens, top_k = states.weights.shape
    shape = (tokens, layout.hidden)
    check_device_tensor(states.x, "add_experts: x", (torch.bfloat16,), shape)
    check_device_tensor(states.out, "add_experts: out", (torch.float32,), shape)
    check_device_tensor(states.weights, "add_experts: weights", (torch.float32,), (tokens, top_k))
    for name, t, wanted in (
        ("pairs", states.pairs, (None,)),
        ("places", states.places, (tokens, top_k)),
        ("slots", group.slots, (None,)),
        ("tiles", group.tiles, (None, 3)),
    ):
        check_device_tensor(t, f"add_experts: {name}", (torch.int32,), wanted)
    check_device_tensor(data, "add_experts: data", (torch.uint8,), (None, None))
    if data.shape[1] < layout.slot_bytes:
        raise ShapeError(
            f"add_experts: slots of {data.shape[1]} bytes, expected at least {layout.slot_bytes}"
        )


def _dequantize(
    w: Tensor,
    group: ExpertGroup,
    data: Tensor,
    layout: SlotLayout,
    offset: int,
    kinds: Sequence[QuantType],
    rows: int,
    cols: int,
) -> None:
    """Dequantize matrices (rows, cols) of each expert: one at offset, or two from offset 0 on."""
    step = layout.up_offset
    at_once = len(kinds) if len(set(kinds)) == 1 else 1
    for number in range(0, len(kinds), at_once):
        kind = kinds[number]
        grid = (
            triton.cdiv(rows, _DEQUANTIZED_ROWS),
            triton.cdiv(cols, CHUNK),
            len(group.slots) * at_once,
        )
        _dequantize_kernel[grid](
            data,
            group.slots,
            codebooks(data.device),
            w,
            rows,
            cols,
            data.shape[1],
            offset + number * step,
            step,
            layout.row_bytes(kind, cols),
            chunk_limit(kind.name, cols),
            number,
            len(kinds),
            AT_ONCE=at_once,
            KIND=kind.name,
            IS_PACKED=layout.is_packed and has_planes(kind),
            ROWS=_DEQUANTIZED_ROWS,
        )


@triton.jit(do_not_specialize=["number"], do_not_specialize_on_alignment=["slots_ptr"])
def _dequantize_kernel(
    data_ptr,
    slots_ptr,
    books_ptr,
    w_ptr,
    num_rows,
    num_cols,
    slot_bytes,
    offset,
    step,
    row_bytes,
    limit,
    number,
    num_matrices,
    AT_ONCE: tl.constexpr,
    KIND: tl.constexpr,
    IS_PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Dequantize ROWS rows of one chunk of a matrix."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk = tl.program_id(1)
    expert, matrix = tl.program_id(2) // AT_ONCE, tl.program_id(2) % AT_ONCE
    slot = tl.load(slots_ptr + expert).to(tl.int64)
    row_ok = rows < num_rows
    rows = rows.to(tl.int64)
    source = data_ptr + slot * slot_bytes + offset + matrix * step
    row = source + rows * row_bytes
    w = dequantize_rows(row, chunk, limit, row_ok, books_ptr, KIND, IS_PACKED, ROWS)
    k = chunk * 256 + tl.arange(0, 256)
    target = (expert * num_matrices + number + matrix).to(tl.int64) * num_rows
    out = w_ptr + (target + rows)[:, None] * num_cols + k[None, :]
    tl.store(out, w.to(tl.bfloat16), mask=row_ok[:, None] & (k < num_cols)[None, :])


@triton.jit(
    do_not_specialize=["first_pair", "top_k"],
    do_not_specialize_on_alignment=["pairs_ptr", "tiles_ptr"],
)
def _gate_up_kernel(
    x_ptr,
    pairs_ptr,
    tiles_ptr,
    w_ptr,
    act_ptr,
    first_pair,
    top_k,
    inter,
    hidden,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    IS_EVEN: tl.constexpr,
    DOT: tl.constexpr,
):
    """Compute N columns of silu(gate x) * (up x) of a tile's pairs."""
    tile = tiles_ptr + 3 * tl.program_id(0)
    expert, start, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    pair = start + tl.arange(0, M)
    pair_ok = pair < end
    token = tl.load(pairs_ptr + tl.where(pair_ok, pair, start)) // top_k
    n = tl.program_id(1) * N + tl.arange(0, N)
    n_ok = n < inter
    gate_row = expert.to(tl.int64) * 2 * inter + tl.where(n_ok, n, 0)
    k = tl.arange(0, K)
    x = x_ptr + token.to(tl.int64)[:, None] * hidden + k[None, :]
    gate_w = w_ptr + gate_row[None, :] * hidden + k[:, None]
    up_w = gate_w + inter.to(tl.int64) * hidden
    gate = tl.zeros((M, N), tl.float32)
    up = tl.zeros((M, N), tl.float32)
    for i in range(0, tl.cdiv(hidden, K)):
        if IS_EVEN:
            a = tl.load(x)
            g = tl.load(gate_w)
            u = tl.load(up_w)
        else:
            k_ok = i * K + k < hidden
            a = tl.load(x, mask=k_ok[None, :], other=0.0)
            g = tl.load(gate_w, mask=k_ok[:, None], other=0.0)
            u = tl.load(up_w, mask=k_ok[:, None], other=0.0)
        gate = tl.dot(a.to(DOT), g.to(DOT), gate)
        up = tl.dot(a.to(DOT), u.to(DOT), up)
        x += K
        gate_w += K
        up_w += K
    act = swiglu(gate, up)
    row = (pair - first_pair).to(tl.int64)
    out = act_ptr + row[:, None] * inter + n[None, :]
    tl.store(out, act.to(tl.bfloat16), mask=pair_ok[:, None] & n_ok[None, :])


@triton.jit(do_not_specialize=["first_pair"], do_not_specialize_on_alignment=["tiles_ptr"])
def _down_kernel(
    act_ptr,
    tiles_ptr,
    w_ptr,
    results_ptr,
    first_pair,
    inter,
    hidden,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    IS_EVEN: tl.constexpr,
    DOT: tl.constexpr,
):
    """Multiply a tile's hidden activations by N rows of the down matrix."""
    tile = tiles_ptr + 3 * tl.program_id(0)
    expert, start, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    pair = start + tl.arange(0, M)
    pair_ok = pair < end
    row = (pair - first_pair).to(tl.int64)
    n = tl.program_id(1) * N + tl.arange(0, N)
    n_ok = n < hidden
    k = tl.arange(0, K)
    act = act_ptr + tl.where(pair_ok, row, start - first_pair)[:, None] * inter + k[None, :]
    w_row = expert.to(tl.int64) * hidden + tl.where(n_ok, n, 0)
    w = w_ptr + w_row[None, :] * inter + k[:, None]
    sums = tl.zeros((M, N), tl.float32)
    for i in range(0, tl.cdiv(inter, K)):
        if IS_EVEN:
            a = tl.load(act)
            b = tl.load(w)
        else:
            k_ok = i * K + k < inter
            a = tl.load(act, mask=k_ok[None, :], other=0.0)
            b = tl.load(w, mask=k_ok[:, None], other=0.0)
        sums = tl.dot(a.to(DOT), b.to(DOT), sums)
        act += K
        w += K
    out = results_ptr + row[:, None] * hidden + n[None, :]
    tl.store(out, sums, mask=pair_ok[:, None] & n_ok[None, :])


@triton.jit(do_not_specialize=["first_pair", "num_pairs", "num_tokens", "top_k"])
def _sum_kernel(
    results_ptr,
    places_ptr,
    weights_ptr,
    out_ptr,
    first_pair,
    num_pairs,
    num_tokens,
    top_k,
    hidden,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the weighted results of some tokens to their sums, by rank. Other tokens are not read."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    t_ok = t < num_tokens
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n_ok = n < hidden
    is_found = t < 0
    for rank in range(0, top_k):
        place = tl.load(places_ptr + t * top_k + rank, mask=t_ok, other=-1) - first_pair
        is_found = is_found | ((place >= 0) & (place < num_pairs))
    out = out_ptr + t.to(tl.int64)[:, None] * hidden + n[None, :]
    mask = is_found[:, None] & n_ok[None, :]
    total = tl.load(out, mask=mask, other=0.0)
    for rank in range(0, top_k):
        place = tl.load(places_ptr + t * top_k + rank, mask=t_ok, other=-1) - first_pair
        is_here = (place >= 0) & (place < num_pairs)
        weight = tl.load(weights_ptr + t * top_k + rank, mask=is_here, other=0.0)
        result = results_ptr + place.to(tl.int64)[:, None] * hidden + n[None, :]
        result = tl.load(result, mask=is_here[:, None] & n_ok[None, :], other=0.0)
        total += weight[:, None] * result
    tl.store(out, total, mask=mask)

"""Absorbed MLA of a decode step on the GPU, over a paged KV cache.

Flash decoding: programs share the positions of each token, and a second kernel combines their
partial results.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.kernels.triton.runtime import (
    IS_INTERPRETED,
    check_device_tensor,
    num_multiprocessors,
)

__all__ = ["AttentionPlan", "latent_attention", "plan_attention"]

HEADS = 16  # of a program; also the smallest dimension of a tensor core product

_HEADS = tl.constexpr(HEADS)


class AttentionPlan(NamedTuple):
    """Launch: `num_splits` programs share the blocks of positions of HEADS heads of a token.

    Each takes an equal run of the blocks that its token sees, of at least two.
    """

    num_splits: int
    block_tokens: int
    num_warps: int


def plan_attention(
    num_tokens: int, num_heads: int, max_positions: int, num_sms: int
) -> AttentionPlan:
    """Plan two programs for each multiprocessor, as far as positions suffice.

    A block is 32 positions: 36 KB of K2's rows of 1152 bytes, which covers the latency of memory.
    It takes 56 KB of shared memory (sm_89, two pipeline stages): a multiprocessor with 100 KB runs
    one program at a time, one with 228 KB four. A split has at least two blocks, since its partial
    result, R + 2 float32 numbers a head, is written and read again. max_positions: an upper bound,
    as in a graph for several lengths; the kernel divides the actual positions.
    """
    block_tokens = 32
    groups = num_tokens * triton.cdiv(num_heads, HEADS)
    blocks = triton.cdiv(max_positions, block_tokens)
    splits = max(1, min(triton.cdiv(2 * num_sms, groups), blocks // 2))
    return AttentionPlan(splits, block_tokens, 8)


def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    pages: Tensor,
    tables: Tensor,
    positions: Tensor,
    scale: float,
    *,
    max_positions: int,
    selected: Tensor | None = None,
) -> Tensor:
    """Attend from each token to the positions of its sequence that it sees.

    Shapes:  q_latent (N, T, R) f32 · q_rope (T, N, P) f32 · pages (pages, 64, R + P)
             f16 or bf16, the first R numbers of each row also its value · tables (T, M) int32:
             position p of a token's sequence lies in page tables[t, p // 64] · positions (T,)
             int32: how many a token sees, itself included; 0 gives zeros · selected (T, k)
             int32 of `indexer.select_positions`, which tokens that see more than k positions attend
             to instead -> (N, T, R) f32.
    Numeric: queries and softmax weights are rounded to the pages' type for the tensor cores, for
             f16 a head's queries over the largest of them; sums are f32.
    Errors:  ShapeError. `max_positions` bounds `positions`, which lies in VRAM and is not read
             here; positions beyond it, and beyond M pages, are not attended to.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1; flash decoding, Dao et al. 2023.
    """
    _check_args(q_latent, q_rope, pages, tables, positions)
    if selected is not None:
        check_device_tensor(
            selected, "latent_attention: selected", (torch.int32,), (len(positions), None)
        )
    num_heads, tokens, latent_dim = q_latent.shape
    max_positions = min(max_positions, tables.shape[1] * PAGE_TOKENS)
    if selected is not None:
        max_positions = min(max_positions, selected.shape[1])
    if tokens == 0 or num_heads == 0 or max_positions < 1:
        return torch.zeros_like(q_latent)
    plan = plan_attention(tokens, num_heads, max_positions, num_multiprocessors(pages.device))
    parts, peaks, totals = _attend_splits(
        q_latent, q_rope, pages, tables, positions, selected, scale, max_positions, plan
    )
    out = torch.empty_like(q_latent)  # (N, T, R)
    _combine_kernel[(num_heads, tokens)](
        parts,
        peaks,
        totals,
        positions,
        out,
        plan.num_splits,
        max_positions,
        R=latent_dim,
        R_BLOCK=_block(latent_dim),
        BLOCK=plan.block_tokens,
        num_warps=4,
    )
    return out


def _check_args(
    q_latent: Tensor, q_rope: Tensor, pages: Tensor, tables: Tensor, positions: Tensor
) -> None:
    f32 = (torch.float32,)
    check_device_tensor(q_latent, "latent_attention: q_latent", f32, (None,) * 3)
    num_heads, tokens, latent_dim = q_latent.shape
    check_device_tensor(q_rope, "latent_attention: q_rope", f32, (tokens, num_heads, None))
    rope_dim = q_rope.shape[2]
    row = (None, PAGE_TOKENS, latent_dim + rope_dim)
    check_device_tensor(pages, "latent_attention: pages", (torch.float16, torch.bfloat16), row)
    check_device_tensor(tables, "latent_attention: tables", (torch.int32,), (tokens, None))
    check_device_tensor(positions, "latent_attention: positions", (torch.int32,), (tokens,))
    if rope_dim < 1 or latent_dim < 1:
        raise ShapeError(f"latent_attention: rows of {latent_dim} + {rope_dim} numbers")


def _block(dim: int) -> int:
    return max(HEADS, int(triton.next_power_of_2(dim)))


def _attend_splits(
    q_latent: Tensor,
    q_rope: Tensor,
    pages: Tensor,
    tables: Tensor,
    positions: Tensor,
    selected: Tensor | None,
    scale: float,
    max_positions: int,
    plan: AttentionPlan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute each split's values, greatest score and sum of weights."""
    num_heads, tokens, latent_dim = q_latent.shape
    rope_dim = q_rope.shape[2]
    shape = (tokens, num_heads, plan.num_splits)
    parts = q_latent.new_empty((*shape, latent_dim))
    peaks, totals = q_latent.new_empty(shape), q_latent.new_empty(shape)
    key = tl.float16 if pages.dtype is torch.float16 else tl.bfloat16
    _attention_kernel[(triton.cdiv(num_heads, HEADS), plan.num_splits, tokens)](
        q_latent,
        q_rope,
        pages,
        tables,
        positions,
        positions if selected is None else selected,
        parts,
        peaks,
        totals,
        scale,
        num_heads,
        tables.shape[1],
        max_positions,
        0 if selected is None else selected.shape[1],
        IS_SELECTED=selected is not None,
        R=latent_dim,
        P=rope_dim,
        R_BLOCK=_block(latent_dim),
        P_BLOCK=_block(rope_dim),
        BLOCK=plan.block_tokens,
        PAGE=PAGE_TOKENS,
        KEY=key,
        DOT=tl.float32 if IS_INTERPRETED else key,
        num_warps=plan.num_warps,
        num_stages=2,
    )
    return parts, peaks, totals


@triton.jit
def _load_queries(
    q_latent_ptr,
    q_rope_ptr,
    t,
    heads,
    head_ok,
    num_heads,
    scale,
    r,
    p,
    R: tl.constexpr,
    P: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
):
    """Load a token's queries (HEADS, R) and (HEADS, P), and the scale of each head's scores."""
    latent_at = (heads[:, None] * tl.num_programs(2) + t) * R + r[None, :]
    latent_mask = head_ok[:, None] & (r < R)[None, :]
    q_latent = tl.load(q_latent_ptr + latent_at, mask=latent_mask, other=0.0)
    rope_at = (t * num_heads + heads[:, None]) * P + p[None, :]
    q_rope = tl.load(q_rope_ptr + rope_at, mask=head_ok[:, None] & (p < P)[None, :], other=0.0)
    scales = tl.full((_HEADS,), 1.0, tl.float32) * scale
    if tl.float16 == KEY:  # absorbed queries may exceed its range: scale them to 1 at most
        most = tl.maximum(tl.max(tl.abs(q_latent), 1), tl.max(tl.abs(q_rope), 1))
        most = tl.where(most > 0, most, 1.0)
        q_latent /= most[:, None]
        q_rope /= most[:, None]
        scales *= most
    return q_latent.to(KEY).to(DOT), q_rope.to(KEY).to(DOT), scales


@triton.jit
def _blocks_per_split(num_blocks, num_splits):
    """Count the blocks of one split, at least two; of few blocks the last splits have none."""
    return tl.maximum(tl.cdiv(num_blocks, num_splits), 2)


# Tables grow with a sequence, and lie anywhere in a step's buffer: one binary for all.
@triton.jit(
    do_not_specialize=["num_heads", "table_pages", "max_positions", "num_selected"],
    do_not_specialize_on_alignment=["tables_ptr", "positions_ptr", "selected_ptr"],
)
def _attention_kernel(
    q_latent_ptr,
    q_rope_ptr,
    pages_ptr,
    tables_ptr,
    positions_ptr,
    selected_ptr,
    parts_ptr,
    peaks_ptr,
    totals_ptr,
    scale,
    num_heads,
    table_pages,
    max_positions,
    num_selected,
    IS_SELECTED: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    R_BLOCK: tl.constexpr,
    P_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
):
    """Attend from HEADS heads of a token to one split of its positions: an online softmax."""
    heads = tl.program_id(0) * _HEADS + tl.arange(0, _HEADS)
    split = tl.program_id(1)
    t = tl.program_id(2).to(tl.int64)
    head_ok = heads < num_heads
    r = tl.arange(0, R_BLOCK)
    p = tl.arange(0, P_BLOCK)
    q_latent, q_rope, scales = _load_queries(
        q_latent_ptr, q_rope_ptr, t, heads, head_ok, num_heads, scale, r, p, R, P, KEY, DOT
    )
    num_seen = tl.load(positions_ptr + t)
    seen = tl.minimum(num_seen, max_positions)
    num_blocks = tl.cdiv(seen, BLOCK)
    per_split = _blocks_per_split(num_blocks, tl.num_programs(1))
    first = split * per_split
    last = tl.minimum(first + per_split, num_blocks)
    peak = tl.full((_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((_HEADS,), tl.float32)
    acc = tl.zeros((_HEADS, R_BLOCK), tl.float32)
    for block in range(first, last):
        position = block * BLOCK + tl.arange(0, BLOCK)
        here = position < seen
        if IS_SELECTED:
            chosen = tl.load(selected_ptr + t * num_selected + position, mask=here, other=0)
            position = tl.where(num_seen > max_positions, chosen, position)
            entries = tables_ptr + t * table_pages + position // PAGE
            page = tl.load(entries, mask=here, other=0).to(tl.int64)
        else:  # a block lies in one page
            page = tl.load(tables_ptr + t * table_pages + block * BLOCK // PAGE).to(tl.int64)
        row = (page * PAGE + position % PAGE) * (R + P)
        keys = pages_ptr + row[:, None]
        latents = tl.load(keys + r[None, :], mask=here[:, None] & (r < R)[None, :], other=0.0)
        ropes = tl.load(keys + R + p[None, :], mask=here[:, None] & (p < P)[None, :], other=0.0)
        latents = latents.to(DOT)  # (BLOCK, R)
        scores = tl.dot(q_rope, tl.trans(ropes.to(DOT)))
        scores = tl.dot(q_latent, tl.trans(latents), scores) * scales[:, None]  # (HEADS, BLOCK)
        scores = tl.where(here[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))  # finite: no block is empty
        shrink = tl.exp(peak - new_peak)
        shares = tl.exp(scores - new_peak[:, None])
        total = total * shrink + tl.sum(shares, 1)
        acc = tl.dot(shares.to(KEY).to(DOT), latents, acc * shrink[:, None])
        peak = new_peak
    if (first < last) | (split == 0):  # the others are not read
        at = (t * num_heads + heads) * tl.num_programs(1) + split
        tl.store(peaks_ptr + at, peak, mask=head_ok)
        tl.store(totals_ptr + at, total, mask=head_ok)
        part_mask = head_ok[:, None] & (r < R)[None, :]
        tl.store(parts_ptr + at[:, None] * R + r[None, :], acc, mask=part_mask)


@triton.jit(
    do_not_specialize=["num_splits", "max_positions"],
    do_not_specialize_on_alignment=["positions_ptr"],
)
def _combine_kernel(
    parts_ptr,
    peaks_ptr,
    totals_ptr,
    positions_ptr,
    out_ptr,
    num_splits,
    max_positions,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Combine the splits of one head of a token, each scaled to the highest peak of all."""
    head = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, R_BLOCK)
    at = (t * tl.num_programs(0) + head) * num_splits
    num_blocks = tl.cdiv(tl.minimum(tl.load(positions_ptr + t), max_positions), BLOCK)
    num_used = tl.cdiv(num_blocks, _blocks_per_split(num_blocks, num_splits))
    peak = tl.load(peaks_ptr + at)  # of the first split, which has a position if any has
    total = tl.load(totals_ptr + at)
    acc = tl.load(parts_ptr + at * R + r, mask=r < R, other=0.0)
    for split in range(1, num_used):
        part_total = tl.load(totals_ptr + at + split)
        part_peak = tl.load(peaks_ptr + at + split)
        part = tl.load(parts_ptr + (at + split) * R + r, mask=r < R, other=0.0)
        new_peak = tl.maximum(peak, part_peak)
        shrink, grow = tl.exp(peak - new_peak), tl.exp(part_peak - new_peak)
        total = total * shrink + part_total * grow
        acc = acc * shrink + part * grow
        peak = new_peak
    result = acc / tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + (head * tl.num_programs(1) + t) * R + r, result, mask=r < R)

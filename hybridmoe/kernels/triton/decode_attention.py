"""Absorbed latent attention of a decode step on a card, over pages of latents.

The positions of each token are shared out among programs (flash decoding), whose partial results a
second kernel puts together.
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


class AttentionPlan(NamedTuple):
    """The launch: `num_splits` programs share the blocks of positions of 16 heads of a token.

    Each takes an equal run of those that its token sees, but of two blocks at least.
    """

    num_splits: int
    block_tokens: int
    num_warps: int


def plan_attention(
    num_tokens: int, num_heads: int, max_positions: int, num_sms: int
) -> AttentionPlan:
    """Two programs for each multiprocessor, as far as there are positions to share.

    A block is 32 positions: of K2's rows of 1152 bytes 36 KB, which by itself covers the latency of
    memory. The compiler wants 56 KB of shared memory for it (sm_89, two pipeline stages): a
    consumer card with 100 KB runs one program at a time, a large one four. A split has two blocks
    at least, since its partial result, R + 2 float32 numbers a head, is written and read again.
    max_positions: what any token sees, or a little more, as in a graph that is used for several
    lengths: the kernel shares out what there is.
    """
    block_tokens = 32
    groups = num_tokens * triton.cdiv(num_heads, 16)
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
) -> Tensor:
    """Softmax attention of each token over the positions of its sequence that it sees.

    Shapes:  q_latent (N, T, R) f32 · q_rope (T, N, P) f32 · pages (pages, 64, R + P)
             f16 or bf16, the first R numbers of each row also its value · tables (T, M) int32:
             position p of a token's sequence lies in page tables[t, p // 64] · positions (T,)
             int32: how many a token sees, itself included; 0 gives zeros -> (N, T, R) f32.
    Numeric: queries and softmax weights are rounded to the pages' type for the tensor cores, for
             f16 a head's queries over the largest of them; sums are f32.
    Errors:  ShapeError. `max_positions` bounds `positions`, which lies on the card and is not read
             here; what lies beyond it is not attended to, nor is what M pages do not hold.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1; flash decoding, Dao et al. 2023.
    """
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
    max_positions = min(max_positions, tables.shape[1] * PAGE_TOKENS)
    if tokens == 0 or num_heads == 0 or max_positions < 1:
        return torch.zeros_like(q_latent)
    sms = num_multiprocessors(pages.device)
    plan = plan_attention(tokens, num_heads, max_positions, sms)
    shape = (tokens, num_heads, plan.num_splits)
    parts = q_latent.new_empty((*shape, latent_dim))
    peaks, totals = q_latent.new_empty(shape), q_latent.new_empty(shape)
    latent_block = max(16, triton.next_power_of_2(latent_dim))
    key = tl.float16 if pages.dtype is torch.float16 else tl.bfloat16
    _attention_kernel[(triton.cdiv(num_heads, 16), plan.num_splits, tokens)](
        q_latent,
        q_rope,
        pages,
        tables,
        positions,
        parts,
        peaks,
        totals,
        scale,
        num_heads,
        tables.shape[1],
        max_positions,
        R=latent_dim,
        P=rope_dim,
        R_BLOCK=latent_block,
        P_BLOCK=max(16, triton.next_power_of_2(rope_dim)),
        BLOCK=plan.block_tokens,
        PAGE=PAGE_TOKENS,
        KEY=key,
        DOT=tl.float32 if IS_INTERPRETED else key,
        num_warps=plan.num_warps,
        num_stages=2,
    )
    out = torch.empty_like(q_latent)  # (N, T, R)
    _combine_kernel[(num_heads, tokens)](
        parts,
        peaks,
        totals,
        out,
        plan.num_splits,
        R=latent_dim,
        R_BLOCK=latent_block,
        num_warps=4,
    )
    return out


@triton.jit
def _attention_kernel(
    latent_q_ptr,
    rope_q_ptr,
    pages_ptr,
    tables_ptr,
    positions_ptr,
    parts_ptr,
    peaks_ptr,
    totals_ptr,
    scale,
    num_heads,
    table_pages,
    max_positions,
    R: tl.constexpr,
    P: tl.constexpr,
    R_BLOCK: tl.constexpr,
    P_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
):
    """16 heads of a token over one split of its positions: an online softmax."""
    heads = tl.program_id(0) * 16 + tl.arange(0, 16)
    split = tl.program_id(1)
    t = tl.program_id(2).to(tl.int64)
    num_tokens = tl.num_programs(2)
    head_ok = heads < num_heads
    r = tl.arange(0, R_BLOCK)
    p = tl.arange(0, P_BLOCK)
    latent_at = (heads[:, None] * num_tokens + t) * R + r[None, :]
    latent_mask = head_ok[:, None] & (r < R)[None, :]
    latent_q = tl.load(latent_q_ptr + latent_at, mask=latent_mask, other=0.0)
    rope_at = (t * num_heads + heads[:, None]) * P + p[None, :]
    rope_q = tl.load(rope_q_ptr + rope_at, mask=head_ok[:, None] & (p < P)[None, :], other=0.0)
    scales = tl.full((16,), 1.0, tl.float32) * scale
    if tl.float16 == KEY:  # whose range absorbed queries may leave: they become 1 at most
        most = tl.maximum(tl.max(tl.abs(latent_q), 1), tl.max(tl.abs(rope_q), 1))
        most = tl.where(most > 0, most, 1.0)
        latent_q /= most[:, None]
        rope_q /= most[:, None]
        scales *= most
    latent_q = latent_q.to(KEY).to(DOT)  # (16, R)
    rope_q = rope_q.to(KEY).to(DOT)  # (16, P)
    seen = tl.minimum(tl.load(positions_ptr + t), max_positions)
    num_blocks = tl.cdiv(seen, BLOCK)
    blocks_per_split = tl.maximum(tl.cdiv(num_blocks, tl.num_programs(1)), 2)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, num_blocks)
    peak = tl.full((16,), float("-inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    acc = tl.zeros((16, R_BLOCK), tl.float32)
    in_block = tl.arange(0, BLOCK)
    for block in range(first, last):
        position = block * BLOCK + in_block
        here = position < seen
        page = tl.load(tables_ptr + t * table_pages + block * BLOCK // PAGE).to(tl.int64)
        row = (page * PAGE + position % PAGE) * (R + P)  # a block lies in one page
        keys = pages_ptr + row[:, None]
        latents = tl.load(keys + r[None, :], mask=here[:, None] & (r < R)[None, :], other=0.0)
        ropes = tl.load(keys + R + p[None, :], mask=here[:, None] & (p < P)[None, :], other=0.0)
        latents = latents.to(DOT)  # (BLOCK, R)
        scores = tl.dot(rope_q, tl.trans(ropes.to(DOT)))
        scores = tl.dot(latent_q, tl.trans(latents), scores) * scales[:, None]  # (16, BLOCK)
        scores = tl.where(here[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))  # finite: a block has one position at least
        shrink = tl.exp(peak - new_peak)
        shares = tl.exp(scores - new_peak[:, None])
        total = total * shrink + tl.sum(shares, 1)
        acc = tl.dot(shares.to(KEY).to(DOT), latents, acc * shrink[:, None])
        peak = new_peak
    at = (t * num_heads + heads) * tl.num_programs(1) + split
    tl.store(peaks_ptr + at, peak, mask=head_ok)
    tl.store(totals_ptr + at, total, mask=head_ok)
    tl.store(parts_ptr + at[:, None] * R + r[None, :], acc, mask=latent_mask)


@triton.jit
def _combine_kernel(
    parts_ptr,
    peaks_ptr,
    totals_ptr,
    out_ptr,
    num_splits,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
):
    """One head of a token: the splits' results, each scaled to the highest peak of all."""
    head = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, R_BLOCK)
    at = (t * tl.num_programs(0) + head) * num_splits
    peak = tl.load(peaks_ptr + at)  # of the first split, which has a position if any has
    total = tl.load(totals_ptr + at)
    acc = tl.load(parts_ptr + at * R + r, mask=r < R, other=0.0)
    for split in range(1, num_splits):
        part_total = tl.load(totals_ptr + at + split)
        if part_total != 0:  # NaN too
            part_peak = tl.load(peaks_ptr + at + split)
            part = tl.load(parts_ptr + (at + split) * R + r, mask=r < R, other=0.0)
            new_peak = tl.maximum(peak, part_peak)
            shrink, grow = tl.exp(peak - new_peak), tl.exp(part_peak - new_peak)
            total = total * shrink + part_total * grow
            acc = acc * shrink + part * grow
            peak = new_peak
    result = acc / tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + (head * tl.num_programs(1) + t) * R + r, result, mask=r < R)

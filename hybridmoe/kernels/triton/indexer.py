"""Selection of the positions of sparse attention on the GPU; twin of kernels/indexer.py.

Scores of all positions, torch's top-k for the least score of a selection, then the positions above
it in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED, check_device_tensor

__all__ = ["MOST_SCORES", "select_positions"]

MOST_SCORES = 8 << 20  # of a call; more tokens go in several
_BLOCK = PAGE_TOKENS  # positions of a program that scores
_COMPACT_BLOCK = 1024
_LEAST_DIM = 16  # of a tensor core product


def select_positions(
    queries: Tensor,
    weights: Tensor,
    pages: Tensor,
    tables: Tensor,
    positions: Tensor,
    top_k: int,
) -> Tensor:
    """Select for each token the `top_k` positions that its index heads score highest.

    Shapes:  queries (T, J, D) f32 · weights (T, J) f32 · pages (pages, 64, D) f16 or bf16 · tables
             (T, M) int32 and positions (T,) int32 as in `latent_attention`, more than top_k
             positions in M pages -> (T, top_k) int32, ascending; of equal scores the earlier
             positions. Rows of tokens that see at most top_k positions are undefined.
    Numeric: queries are rounded to the pages' type, for f16 over a head's largest number; sums are
             f32. Scores that are no numbers leave zeros.
    Errors:  ShapeError.
    Source:  DeepSeek-V3.2-Exp (arXiv 2512.02556), section 2.
    """
    f32, halves = (torch.float32,), (torch.float16, torch.bfloat16)
    check_device_tensor(queries, "select_positions: queries", f32, (None,) * 3)
    tokens, num_heads, dim = queries.shape
    check_device_tensor(weights, "select_positions: weights", f32, (tokens, num_heads))
    check_device_tensor(pages, "select_positions: pages", halves, (None, PAGE_TOKENS, dim))
    check_device_tensor(tables, "select_positions: tables", (torch.int32,), (tokens, None))
    check_device_tensor(positions, "select_positions: positions", (torch.int32,), (tokens,))
    num_scores = tables.shape[1] * PAGE_TOKENS
    scores = queries.new_empty(tokens, num_scores)
    key = tl.float16 if pages.dtype is torch.float16 else tl.bfloat16
    _score_kernel[(tables.shape[1], tokens)](
        queries,
        weights,
        pages,
        tables,
        positions,
        scores,
        tables.shape[1],
        J=num_heads,
        D=dim,
        J_BLOCK=_padded(num_heads),
        D_BLOCK=_padded(dim),
        BLOCK=_BLOCK,
        KEY=key,
        DOT=tl.float32 if IS_INTERPRETED else key,
        num_warps=4,
    )
    least = torch.topk(scores, top_k, dim=1, sorted=False).values.amin(1)
    selected = torch.zeros(tokens, top_k, dtype=torch.int32, device=queries.device)
    _compact_kernel[(tokens,)](
        scores, least, selected, num_scores, top_k, BLOCK=_COMPACT_BLOCK, num_warps=4
    )
    return selected


def _padded(dim: int) -> int:
    return max(_LEAST_DIM, int(triton.next_power_of_2(dim)))


# As in decode_attention.py: tables grow with a sequence, and lie anywhere.
@triton.jit(
    do_not_specialize=["table_pages"],
    do_not_specialize_on_alignment=["tables_ptr", "positions_ptr"],
)
def _score_kernel(
    queries_ptr,
    weights_ptr,
    pages_ptr,
    tables_ptr,
    positions_ptr,
    scores_ptr,
    table_pages,
    J: tl.constexpr,
    D: tl.constexpr,
    J_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
):
    """Score one page of a token's positions; minus infinity for those that it does not see."""
    block = tl.program_id(0)
    t = tl.program_id(1).to(tl.int64)
    heads = tl.arange(0, J_BLOCK)
    d = tl.arange(0, D_BLOCK)
    position = block * BLOCK + tl.arange(0, BLOCK)
    here = position < tl.load(positions_ptr + t)
    out = scores_ptr + t * table_pages * BLOCK + position
    if block * BLOCK >= tl.load(positions_ptr + t):
        tl.store(out, tl.full((BLOCK,), float("-inf"), tl.float32))
    else:
        query_mask = (heads < J)[:, None] & (d < D)[None, :]
        at = (t * J + heads[:, None]) * D + d[None, :]
        queries = tl.load(queries_ptr + at, mask=query_mask, other=0.0)
        weights = tl.load(weights_ptr + t * J + heads, mask=heads < J, other=0.0)
        if tl.float16 == KEY:  # a head's scale is its weight's: relu keeps positive factors
            most = tl.max(tl.abs(queries), 1)
            most = tl.where(most > 0, most, 1.0)
            queries /= most[:, None]
            weights *= most
        page = tl.load(tables_ptr + t * table_pages + block).to(tl.int64)
        row = (page * BLOCK + tl.arange(0, BLOCK)) * D
        keys = tl.load(
            pages_ptr + row[:, None] + d[None, :], mask=here[:, None] & (d < D)[None, :], other=0.0
        )
        products = tl.dot(queries.to(KEY).to(DOT), tl.trans(keys.to(DOT)))  # (J_BLOCK, BLOCK)
        products = tl.where(products < 0, 0.0, products)
        scores = tl.sum(products * weights[:, None], 0)
        tl.store(out, tl.where(here, scores, float("-inf")))


@triton.jit(do_not_specialize=["num_scores", "top_k"])
def _compact_kernel(scores_ptr, least_ptr, selected_ptr, num_scores, top_k, BLOCK: tl.constexpr):
    """Write a token's positions with scores above the least one, and the first that equal it."""
    t = tl.program_id(0).to(tl.int64)
    least = tl.load(least_ptr + t)
    greater = 0
    for start in range(0, num_scores, BLOCK):
        position = start + tl.arange(0, BLOCK)
        here = position < num_scores
        scores = tl.load(scores_ptr + t * num_scores + position, mask=here, other=float("-inf"))
        greater += tl.sum((here & (scores > least)).to(tl.int32), 0)
    num_taken = 0
    num_equal = 0
    for start in range(0, num_scores, BLOCK):
        position = start + tl.arange(0, BLOCK)
        here = position < num_scores
        scores = tl.load(scores_ptr + t * num_scores + position, mask=here, other=float("-inf"))
        is_equal = (here & (scores == least)).to(tl.int32)
        is_first = num_equal + tl.cumsum(is_equal, 0) <= top_k - greater
        is_taken = (here & (scores > least)) | ((is_equal > 0) & is_first)
        rank = num_taken + tl.cumsum(is_taken.to(tl.int32), 0) - 1
        tl.store(selected_ptr + t * top_k + rank, position, mask=is_taken & (rank < top_k))
        num_taken += tl.sum(is_taken.to(tl.int32), 0)
        num_equal += tl.sum(is_equal, 0)

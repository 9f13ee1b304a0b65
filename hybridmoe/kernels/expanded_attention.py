"""MLA of long prompts over the keys and values of each head, expanded from the KV cache.

A query then multiplies fewer numbers a position than in latent space, but expanding must serve
enough of them: `config.Expansion` decides. As in paged_mla.py, a token's bits depend neither on
other sequences nor on how its own are divided into calls.
"""

from torch import Tensor

from hybridmoe import _C
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import check_rows
from hybridmoe.kernels.paged_mla import BlockTables, KvPages

__all__ = ["expanded_attention"]


def expanded_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    k_b: QuantMatrix,
    v_b: QuantMatrix,
    pages: KvPages,
    tables: BlockTables,
    scale: float,
    out: Tensor,
) -> None:
    """Attend causally from a step's tokens to their sequences' KV cache.

    Shapes:  q_nope (T, N, nope), q_rope (T, N, P) f32, rows of both anywhere · k_b N matrices
             (R, nope) · v_b N matrices (V, R) · pages of dim R + P -> out (T, N, V) f32.
    Cost:    2 N (T S (nope + P + V) + S (nope + V) R) operations in 16 bits; half of the first
             term where T = S.
    Numeric: latents, weights, queries, keys and values are rounded to 11 or 12 bits of the greatest
             of a row, softmax's weights to 2^-12 of a block's greatest; sums are exact. Blocks of
             256 positions are merged in order.
    Errors:  ShapeError.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1; online softmax, Milakov & Gimelshein 2018.
    """
    tokens = tables.num_tokens
    check_rows(q_nope, "expanded_attention: q_nope", 3, k_b.cols, tokens, k_b.batch)
    check_rows(q_rope, "expanded_attention: q_rope", 3, None, tokens, k_b.batch)
    check_rows(out, "expanded_attention: out", 3, v_b.rows, tokens, k_b.batch)
    _C.expanded_attention(
        q_nope.data_ptr(),
        q_nope.stride(1),
        q_nope.stride(0),
        q_rope.data_ptr(),
        q_rope.stride(1),
        q_rope.stride(0),
        tokens,
        q_rope.shape[2],
        k_b.handle,
        v_b.handle,
        scale,
        pages.handle,
        *tables.arguments,
        out.data_ptr(),
        out.stride(1),
        out.stride(0),
    )

"""Latent attention of many tokens of one sequence: keys and values of heads are expanded.

That costs 2 S R (nope + V) operations a head, once, and saves tokens x positions x (2 R + P) of
them the difference to nope + P + V: worth it from some tens of tokens on. The attention itself is
torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

__all__ = ["expanded_attention"]

EXPANDED_BYTES = 256 << 20  # of keys and values at a time: heads are taken in groups


def expanded_attention(
    plain: Tensor,
    rotated: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    pages: Tensor,
    page_ids: Tensor,
    num_seen: int,
    scale: float,
) -> Tensor:
    """Causal attention of a sequence's last T positions over all `num_seen` of it.

    Shapes:  plain (T, N, nope) f32 · rotated (T, N, P) f32 · k_b (N, R, nope) bf16 · v_b (N, V, R)
             bf16 · pages (pages, 64, R + P) bf16 · page_ids (pages of the sequence,) int64
             -> (T, N, V) f32.
    Numeric: queries, keys, values and results are rounded to bf16.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1, before absorption; the attention is
             torch's scaled_dot_product_attention, on a card FlashAttention 2 (Dao 2023).
    """
    num_tokens, num_heads, nope_dim = plain.shape
    latent_dim, value_dim = k_b.shape[1], v_b.shape[1]
    rows = pages[page_ids].flatten(0, 1)[:num_seen]  # (S, R + P)
    latents, ropes = rows[:, :latent_dim], rows[:, latent_dim:]
    queries = torch.cat([plain, rotated], 2).bfloat16().transpose(0, 1)  # (N, T, nope + P)
    query_dim = queries.shape[2]
    mask = causal_lower_right(num_tokens, num_seen)
    out = plain.new_empty(num_tokens, num_heads, value_dim)
    head_bytes = 2 * num_seen * (nope_dim + 2 * query_dim + value_dim)
    step = max(1, EXPANDED_BYTES // head_bytes)
    for first in range(0, num_heads, step):
        heads = slice(first, first + step)
        keys = latents @ k_b[heads]  # (n, S, nope)
        keys = torch.cat([keys, ropes.expand(len(keys), -1, -1)], 2)
        values = latents @ v_b[heads].transpose(1, 2)  # (n, S, V)
        if value_dim < query_dim:  # the fast kernels want one size
            values = F.pad(values, (0, query_dim - value_dim))
        mixed = F.scaled_dot_product_attention(
            queries[None, heads], keys[None], values[None], attn_mask=mask, scale=scale
        )[0]
        out[:, heads] = mixed[..., :value_dim].transpose(0, 1)
    return out

"""MLA of a prompt: the keys and values of heads are expanded from the KV cache.

Expanding costs 2 S R (nope + V) operations a head for S positions, once, and saves each token
2 S (2 R - nope - V) of them; PROMPT_TOKENS of device/cuda_block_tables.py decides. The attention
itself is torch's.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["expanded_attention"]

EXPANDED_BYTES = 256 << 20  # keys and values at a time: heads go in groups
_FLASH_UNIT, _FLASH_DIM = 8, 256  # FlashAttention's sizes of a head: multiples of 8, to 256


def expanded_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    pages: Tensor,
    page_ids: Tensor,
    num_positions: int,
    scale: float,
) -> Tensor:
    """Attend causally from a sequence's last T positions to all `num_positions` of it.

    Shapes:  q_nope (T, N, nope) f32 · q_rope (T, N, P) f32 · k_b (N, R, nope) bf16 · v_b (N, V, R)
             bf16 · pages (pages, 64, R + P) f16 or bf16 · page_ids (pages of the sequence,)
             int64 -> (T, N, V) f32.
    Numeric: queries, latents, keys, values and results are rounded to bf16, in whose range
             expanded keys are safe.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1, before absorption; the attention is
             torch's scaled_dot_product_attention, on a GPU FlashAttention 2 (Dao 2023).
    """
    num_tokens, num_heads, nope_dim = q_nope.shape
    latent_dim, value_dim = k_b.shape[1], v_b.shape[1]
    rows = pages[page_ids].flatten(0, 1)[:num_positions].bfloat16()  # (S, R + P)
    latents, ropes = rows[:, :latent_dim], rows[:, latent_dim:]
    queries = torch.cat([q_nope, q_rope], 2).bfloat16().transpose(0, 1)  # (N, T, nope + P)
    # The fast kernels want one size: zeros fill up.
    dim = -(-max(queries.shape[2], value_dim) // _FLASH_UNIT) * _FLASH_UNIT
    queries = F.pad(queries, (0, dim - queries.shape[2]))
    out = q_nope.new_empty(num_tokens, num_heads, value_dim)
    step = min(num_heads, max(1, EXPANDED_BYTES // (4 * num_positions * dim)))
    expanded = rows.new_zeros(2, step, num_positions, dim)
    expanded[0, :, :, nope_dim : nope_dim + ropes.shape[1]] = ropes
    for first in range(0, num_heads, step):
        heads = slice(first, min(first + step, num_heads))
        keys, values = expanded[:, : heads.stop - first]  # (n, S, dim)
        shared = latents.expand(len(keys), -1, -1)
        torch.bmm(shared, k_b[heads], out=keys[..., :nope_dim])
        torch.bmm(shared, v_b[heads].transpose(1, 2), out=values[..., :value_dim])
        mixed = _attend(queries[None, heads], keys[None], values[None], scale)[0]
        out[:, heads] = mixed[..., :value_dim].transpose(0, 1)
    return out


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend causally, the last query to all keys: (1, N, T, dim), (1, N, S, dim) twice.

    What torch.nn.attention.bias does, whose import loads torch's compiler: seconds.
    """
    num_tokens, num_positions = queries.shape[2], keys.shape[2]
    if num_tokens == num_positions:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
    has_flash = queries.is_cuda and torch.backends.cuda.is_flash_attention_available()
    if has_flash and queries.shape[3] <= _FLASH_DIM:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return cast(Tensor, flash(queries, keys, values, is_causal=True, scale=scale)[0])
    seen = torch.ones(num_tokens, num_positions, dtype=torch.bool, device=queries.device)
    seen = seen.tril(num_positions - num_tokens)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale)

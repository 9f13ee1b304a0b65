"""The deepseek2 network in float64, from dequantized weights: exact logits.

Slow and obvious; no cache, and nothing is rounded. Sources as in hybridmoe.model.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from hybridmoe.config import GATE_SIGMOID, ModelConfig
from hybridmoe.kernels import reference
from hybridmoe.model.rope import inverse_frequencies

__all__ = ["exact_drafts", "exact_logits", "exact_states"]


def exact_logits(c: ModelConfig, weights: Mapping[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """(T, V) f64 of a file with split kv_b, as `tiny_gguf.write_tiny` returns its weights."""
    w = _doubles(weights)
    head = w.get("output.weight", w["token_embd.weight"])
    return (exact_states(c, weights, ids) @ head.T).numpy()


def exact_states(c: ModelConfig, weights: Mapping[str, np.ndarray], ids: list[int]) -> Tensor:
    """(T, H) f64, normed, as the output head takes them."""
    w = _doubles(weights)
    x = w["token_embd.weight"][ids]
    for layer in range(c.num_layers):
        x = _layer(c, w, layer, x)
    return _norm(c, x, w["output_norm.weight"])


def exact_drafts(
    c: ModelConfig, weights: Mapping[str, np.ndarray], ids: list[int], before: Tensor
) -> tuple[Tensor, np.ndarray]:
    """States (T, H) and logits (T, V) of the MTP layer. before: (T, H), of the tokens before."""
    w, b = _doubles(weights), f"blk.{c.num_layers}.nextn."
    tokens = w.get(f"{b}embed_tokens.weight", w["token_embd.weight"])[ids]
    joined = (_norm(c, tokens, w[f"{b}enorm.weight"]), _norm(c, before, w[f"{b}hnorm.weight"]))
    x = _layer(c, w, c.num_layers, torch.cat(joined, 1) @ w[f"{b}eh_proj.weight"].T)
    states = _norm(c, x, w.get(f"{b}shared_head_norm.weight", w["output_norm.weight"]))
    head = w.get("output.weight", w["token_embd.weight"])
    return states, (states @ w.get(f"{b}shared_head_head.weight", head).T).numpy()


def _doubles(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).double() for name, array in weights.items()}


def _layer(c: ModelConfig, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    block = {
        name.split(".", 2)[2].removesuffix(".weight"): tensor
        for name, tensor in w.items()
        if name.startswith(f"blk.{layer}.")
    }
    x = x + _attention(c, block, _norm(c, x, block["attn_norm"]))
    h = _norm(c, x, block["ffn_norm"])
    return x + (_ffn(block, h) if layer < c.num_dense_layers else _experts(c, block, h))


def _norm(c: ModelConfig, x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + c.rms_eps).rsqrt() * weight


def _attention(c: ModelConfig, block: dict[str, Tensor], h: Tensor) -> Tensor:
    if c.q_lora_rank:
        q = _norm(c, h @ block["attn_q_a"].T, block["attn_q_a_norm"]) @ block["attn_q_b"].T
    else:
        q = h @ block["attn_q"].T
    if (t := c.temperature) is not None:
        positions = torch.arange(len(q), dtype=torch.float64)
        q = q * (1.0 + t.scale * (positions // t.num_tokens + 1.0).log())[:, None]
    q = q.view(-1, c.num_heads, c.qk_dim)
    absorbed = torch.einsum("tnd,nrd->ntr", q[..., : c.nope_dim], block["attn_k_b"])
    kv = h @ block["attn_kv_a_mqa"].T
    latent = _norm(c, kv[:, : c.kv_lora_rank], block["attn_kv_a_norm"])
    key = _rotated(c, kv[:, None, c.kv_lora_rank :])[:, 0]
    mixed = reference.latent_attention(
        absorbed, _rotated(c, q[..., c.nope_dim :]), torch.cat((latent, key), 1), c.softmax_scale
    )  # (N, T, R)
    heads = torch.einsum("ntr,nvr->tnv", mixed, block["attn_v_b"])
    return heads.flatten(1) @ block["attn_output"].T


def _rotated(c: ModelConfig, x: Tensor) -> Tensor:
    """x (T, N, rope), neighbours as pairs."""
    positions = torch.arange(len(x), dtype=torch.float64)
    angles = positions[:, None] * inverse_frequencies(c.rope_dim, c.rope_base, c.yarn)
    size = torch.full_like(angles, c.yarn.rotary_mscale if c.yarn else 1.0)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(size, angles)[:, None]).flatten(-2)


def _ffn(block: dict[str, Tensor], h: Tensor, kind: str = "") -> Tensor:
    gate, up, down = (block[f"ffn_{part}{kind}"] for part in ("gate", "up", "down"))
    return (silu(h @ gate.T) * (h @ up.T)) @ down.T


def _experts(c: ModelConfig, block: dict[str, Tensor], h: Tensor) -> Tensor:
    out = _ffn(block, h, "_shexp") if c.num_shared_experts else torch.zeros_like(h)
    ids, shares = _route(c, h @ block["ffn_gate_inp"].T, block.get("exp_probs_b.bias"))
    gate, up, down = (block[f"ffn_{part}_exps"] for part in ("gate", "up", "down"))
    for t, e in np.ndindex(*ids.shape):
        i = ids[t, e]
        out[t] += shares[t, e] * (down[i] @ (silu(gate[i] @ h[t]) * (up[i] @ h[t])))
    return out


def _route(c: ModelConfig, logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    is_sigmoid = c.gate == GATE_SIGMOID
    scores = logits.sigmoid() if is_sigmoid else logits.softmax(-1)
    choice = scores if bias is None else scores + bias
    if c.num_groups_used < c.num_groups:
        groups = choice.unflatten(-1, (c.num_groups, -1))
        strength = groups.topk(2 if is_sigmoid else 1)[0].sum(-1)
        kept = torch.zeros_like(strength).scatter(1, strength.topk(c.num_groups_used)[1], 1.0)
        choice = groups.masked_fill(kept[..., None] == 0, float("-inf")).flatten(1)
    ids = choice.topk(c.top_k)[1]
    shares = scores.gather(1, ids)
    if c.normalize_weights:
        shares = shares / shares.sum(-1, keepdim=True)
    return ids, shares * c.routed_scale

"""Network of the embedded model for training: plain float32 torch, MLA not absorbed.

A small Kimi K2: MLA with q_lora, interleaved rope pairs as llama.cpp's deepseek2
has them, one dense layer, then MoE layers with a sigmoid router whose selection bias follows the
load (DeepSeek-V3, 2412.19437, section 2.1.2) and one shared expert. Knows neither text nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "DemoConfig", "DemoNetwork", "Moe", "Norm", "round_to_4_bits"]


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Sizes of the network; rows of Q4_K matrices are multiples of 256."""

    vocab: int
    hidden: int = 256
    layers: int = 5
    dense_layers: int = 1
    dense_inter: int = 1024
    experts: int = 32
    top_k: int = 4
    expert_inter: int = 256
    heads: int = 4
    nope: int = 64
    rope: int = 64
    value: int = 64
    q_lora: int = 256
    kv_lora: int = 512
    routed_scale: float = 2.0
    rope_theta: float = 50000.0
    norm_eps: float = 1e-6
    context_tokens: int = 2048


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _linear(rows: int, columns: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, std=scale * columns**-0.5)
    return layer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) of the last dimension."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    """Multi-head latent attention."""

    def __init__(self, c: DemoConfig) -> None:
        super().__init__()
        self.c = c
        self.q_a = _linear(c.q_lora, c.hidden)
        self.q_a_norm = Norm(c.q_lora, c.norm_eps)
        self.q_b = _linear(c.heads * (c.nope + c.rope), c.q_lora)
        self.kv_a = _linear(c.kv_lora + c.rope, c.hidden)
        self.kv_a_norm = Norm(c.kv_lora, c.norm_eps)
        self.kv_b = _linear(c.heads * (c.nope + c.value), c.kv_lora)
        self.out = _linear(c.hidden, c.heads * c.value, (2 * c.layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        c = self.c
        rows, length, _ = x.shape
        q = self.q_b(self.q_a_norm(self.q_a(x))).view(rows, length, c.heads, c.nope + c.rope)
        latent, k_rope = torch.split(self.kv_a(x), [c.kv_lora, c.rope], -1)
        kv = self.kv_b(self.kv_a_norm(latent)).view(rows, length, c.heads, c.nope + c.value)
        k_nope, v = torch.split(kv, [c.nope, c.value], -1)
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        q_nope, q_rope = torch.split(q, [c.nope, c.rope], -1)
        k_rope = rotate(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, c.heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope), -1).transpose(1, 2)
        # The CPU flash kernel wants equal widths: pad v, which costs less than the plain kernel.
        v = F.pad(v, (0, c.nope + c.rope - c.value)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[..., : c.value]
        y = y.transpose(1, 2).reshape(rows, length, c.heads * c.value)
        return cast(Tensor, self.out(y))


class Mlp(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, hidden: int, inter: int, out_scale: float) -> None:
        super().__init__()
        self.gate = _linear(inter, hidden)
        self.up = _linear(inter, hidden)
        self.down = _linear(hidden, inter, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x)) * self.up(x)))


def round_to_4_bits(weight: Tensor) -> Tensor:
    """Round to 4 bits in blocks of 32 (scale and minimum); the gradient passes straight through."""
    blocks = weight.detach().view(-1, 32)
    low = blocks.amin(1, keepdim=True).clamp_(max=0)
    step = ((blocks.amax(1, keepdim=True) - low) / 15).clamp_(min=1e-8)
    rounded = ((blocks - low) / step).round_().mul_(step).add_(low).view_as(weight)
    return weight + (rounded - weight.detach())


class Moe(nn.Module):
    """Routed experts and a shared one."""

    bias: Tensor

    def __init__(self, c: DemoConfig) -> None:
        super().__init__()
        self.c = c
        scale = (2 * c.layers) ** -0.5
        self.router = nn.Parameter(torch.randn(c.experts, c.hidden) * c.hidden**-0.5)
        self.register_buffer("bias", torch.zeros(c.experts))
        self.gate_up = nn.Parameter(
            torch.randn(c.experts, 2 * c.expert_inter, c.hidden) * c.hidden**-0.5
        )
        self.down = nn.Parameter(
            torch.randn(c.experts, c.hidden, c.expert_inter) * (scale * c.expert_inter**-0.5)
        )
        self.shared = Mlp(c.hidden, c.expert_inter, scale)
        self.is_rounded = False
        self.load = torch.zeros(c.experts)
        self.balance = torch.zeros(())
        self.ids = torch.zeros(0, c.top_k, dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        c = self.c
        flat = x.reshape(-1, c.hidden)
        scores = torch.sigmoid(flat @ self.router.T)  # (T, E)
        ids = (scores.detach() + self.bias).topk(c.top_k, -1).indices  # (T, K)
        weights = scores.gather(1, ids)
        weights = c.routed_scale * weights / weights.sum(-1, keepdim=True)
        order = ids.flatten().argsort(stable=True)
        counts = ids.flatten().bincount(minlength=c.experts)
        self.load, self.ids = counts.float() / ids.numel(), ids
        mean_scores = (scores / scores.sum(-1, keepdim=True)).mean(0)
        self.balance = c.experts * (self.load * mean_scores).sum()
        tokens = order // c.top_k
        parts = torch.split(flat.index_select(0, tokens), counts.tolist())
        gate_up: Tensor = self.gate_up
        down: Tensor = self.down
        if self.is_rounded:
            gate_up, down = round_to_4_bits(gate_up), round_to_4_bits(down)
        outs = []
        for part, first, second in zip(parts, gate_up.unbind(0), down.unbind(0), strict=True):
            gate, up = (part @ first.T).chunk(2, -1)
            outs.append((F.silu(gate) * up) @ second.T)
        routed = torch.cat(outs) * weights.flatten().index_select(0, order).unsqueeze(1)
        y = torch.zeros_like(flat).index_add(0, tokens, routed)
        return cast(Tensor, y + self.shared(flat)).view_as(x)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm."""

    def __init__(self, c: DemoConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(c.hidden, c.norm_eps)
        self.attention = Attention(c)
        self.ffn_norm = Norm(c.hidden, c.norm_eps)
        is_dense = index < c.dense_layers
        self.ffn = Mlp(c.hidden, c.dense_inter, (2 * c.layers) ** -0.5) if is_dense else Moe(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        if chosen is not None:
            x = x[chosen].unsqueeze(0)  # (1, chosen, H)
        return cast(Tensor, x + self.ffn(self.ffn_norm(x)))


class DemoNetwork(nn.Module):
    """Language model: token ids to logits."""

    frequency: Tensor

    def __init__(self, c: DemoConfig) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.5)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.layers))
        self.norm = Norm(c.hidden, c.norm_eps)
        self.head = nn.Parameter(torch.randn(c.vocab, c.hidden) * (0.5 * c.hidden**-0.5))
        frequency = c.rope_theta ** (-torch.arange(0, c.rope, 2).float() / c.rope)
        self.register_buffer("frequency", frequency, persistent=False)

    def moes(self) -> list[Moe]:
        """Return the MoE layers in order."""
        return [block.ffn for block in self.blocks if isinstance(block.ffn, Moe)]

    def forward(
        self, ids: Tensor, positions: Tensor, documents: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Compute the hidden states after the last norm.

        Shapes:  ids, positions, documents (B, L) int64 · chosen (B, L) bool · result (B, L, H),
                 or (1, chosen, H): the last feed-forward then runs on the chosen tokens only.
        Numeric: a token sees earlier tokens of its own document only.
        """
        angles = positions.unsqueeze(-1) * self.frequency
        cos, sin = angles.cos(), angles.sin()
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (documents.unsqueeze(2) == documents.unsqueeze(1)) & causal
        x = F.embedding(ids, self.embedding)
        for i, block in enumerate(self.blocks):
            is_last = i == len(self.blocks) - 1
            x = block(x, cos, sin, mask.unsqueeze(1), chosen if is_last else None)
        return cast(Tensor, self.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of hidden states."""
        return hidden @ self.head.T

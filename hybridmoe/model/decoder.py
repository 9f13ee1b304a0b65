"""The deepseek2 decoder: token ids in, logits out, latents appended to the caller's cache.

Knows nothing of text, sampling or of who else is being served.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.experts.backends import CpuExperts, ExpertBackend, ExpertWeights
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.ops import gather_rows, linear
from hybridmoe.model.mla import LatentAttention
from hybridmoe.model.moe import DenseFfn, MoeFfn
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.rope import RotaryTable
from hybridmoe.model.threads import torch_threads
from hybridmoe.model.weights import Weights

__all__ = ["Decoder", "LatentCache"]


class LatentCache(Protocol):
    """What the decoder needs of a cache: room for the new tokens' latents, layer by layer."""

    def rows(self, layer: int, num_tokens: int) -> Tensor:
        """(num_tokens, R + rope) f32: the first `num_tokens` rows of a layer, writable."""
        ...


class Decoder:
    """All layers of one model. Stateless between calls: positions come from the caller."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        """Bind the file's tensors. Errors: GGUFError naming a missing or misshapen tensor."""
        self.config = c = config
        weights = Weights(file)
        self._embedding = weights.matrix("token_embd", c.vocab_size, c.hidden)
        self._norm = RmsNorm(weights.vector("output_norm", c.hidden), c.rms_eps)
        head = "output" if weights.has("output") else "token_embd"  # tied where a file has none
        self._head = weights.matrix(head, c.vocab_size, c.hidden)
        rope = RotaryTable(c)
        experts = CpuExperts(
            {i: _expert_weights(weights, i, c) for i in range(c.num_dense_layers, c.num_layers)}
        )
        self._layers = [_Layer(weights, i, c, rope, experts) for i in range(c.num_layers)]

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[int], cache: LatentCache, start: int) -> Tensor:
        """Run T tokens at positions start, start + 1, ...; returns their final states (T, H).

        Ids must lie in the vocabulary. The cache holds valid latents for every earlier position.
        """
        with torch_threads(1):
            x = gather_rows(self._embedding, torch.tensor(token_ids, dtype=torch.int64))  # (T, H)
            delta = None
            for i, layer in enumerate(self._layers):
                delta = layer.forward(x, delta, cache.rows(i, start + len(token_ids)), start)
            return x if delta is None else x.add_(delta)

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, V) f32 of final states (T, H)."""
        with torch_threads(1):
            return linear(self._norm(x), self._head)


class _Layer:
    def __init__(
        self, weights: Weights, i: int, c: ModelConfig, rope: RotaryTable, experts: ExpertBackend
    ) -> None:
        block = weights.block(i)
        self._attention_norm = RmsNorm(block.vector("attn_norm", c.hidden), c.rms_eps)
        self._attention = LatentAttention(block, c, rope)
        self._ffn_norm = RmsNorm(block.vector("ffn_norm", c.hidden), c.rms_eps)
        self._ffn: DenseFfn | MoeFfn
        if i < c.num_dense_layers:
            self._ffn = DenseFfn(block, c.hidden, c.dense_inter)
        else:
            self._ffn = MoeFfn(block, i, c, experts)

    def forward(self, x: Tensor, delta: Tensor | None, latents: Tensor, start: int) -> Tensor:
        """Add `delta`, the layer before's result, to x (T, H) in place; return this layer's."""
        delta = self._attention.forward(self._attention_norm(x, delta), latents, start)
        return self._ffn.forward(self._ffn_norm(x, delta))


def _expert_weights(weights: Weights, layer: int, c: ModelConfig) -> ExpertWeights:
    block = weights.block(layer)
    return ExpertWeights(
        gate=block.matrix("ffn_gate_exps", c.num_experts, c.expert_inter, c.hidden),
        up=block.matrix("ffn_up_exps", c.num_experts, c.expert_inter, c.hidden),
        down=block.matrix("ffn_down_exps", c.num_experts, c.hidden, c.expert_inter),
    )

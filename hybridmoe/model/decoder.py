"""The deepseek2 decoder: token ids in, logits out, latents written to the caller's pages.

Knows nothing of text, sampling or of who is being served.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.experts.backends import CpuExperts, ExpertBackend
from hybridmoe.experts.counters import ExpertStats
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.latents import LatentPages, PageTable, Span
from hybridmoe.kernels.ops import gather_rows, linear
from hybridmoe.model.mla import LatentAttention
from hybridmoe.model.moe import DenseFfn, MoeFfn
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.residency import Residency
from hybridmoe.model.rope import RotaryTable
from hybridmoe.model.threads import torch_threads
from hybridmoe.model.weights import Weights, expert_weights

__all__ = ["Decoder"]


class Decoder:
    """All layers of one model. Stateless between calls: positions come from the caller."""

    def __init__(
        self, file: GGUFFile, config: ModelConfig, residency: Residency | None = None
    ) -> None:
        """Bind the file's tensors. Errors: GGUFError naming a missing or misshapen tensor.

        residency: where weights lie; None = all in the memory map.
        """
        self.config = c = config
        if residency is None:
            residency = Residency(CpuExperts(expert_weights(Weights(file), c)))
        weights = Weights(file, residency.private)
        self._embedding = weights.matrix("token_embd", c.vocab_size, c.hidden)
        self._norm = RmsNorm(weights.vector("output_norm", c.hidden), c.rms_eps)
        head = "output" if weights.has("output") else "token_embd"  # tied where a file has none
        self._head = weights.matrix(head, c.vocab_size, c.hidden)
        self._rope = RotaryTable(c)
        self._experts = experts = residency.experts
        self.recorder = residency.recorder
        self._layers = [_Layer(weights, i, c, experts) for i in range(c.num_layers)]
        if experts.wants_guesses:
            for layer, following in pairwise(self._layers):
                layer.guess_for(following)

    def expert_stats(self) -> ExpertStats | None:
        """What the expert cache has done; None where there is none. From any thread."""
        return self._experts.stats()

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        pages: Sequence[LatentPages],
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Run a step of one or many sequences; returns the tokens' final states (T, H).

        token_ids: the sequences' tokens, one after the other, in the vocabulary. spans: where
        they belong; latents of all earlier positions are in the pages already. pages: one of each
        layer. trace: gets each expert layer's choices, (T, K) int32.
        """
        with torch_threads(1):
            table = PageTable(spans)
            x = gather_rows(self._embedding, torch.tensor(token_ids, dtype=torch.int64))  # (T, H)
            turns = self._rope.turns(_positions(spans))
            delta = None
            for layer, layer_pages in zip(self._layers, pages, strict=True):
                delta = layer.forward(x, delta, layer_pages, table, turns, trace)
            return x if delta is None else x.add_(delta)

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, V) f32 of final states (T, H)."""
        with torch_threads(1):
            return linear(self._norm(x), self._head)


class _Layer:
    def __init__(self, weights: Weights, i: int, c: ModelConfig, experts: ExpertBackend) -> None:
        block = weights.block(i)
        self._attention_norm = RmsNorm(block.vector("attn_norm", c.hidden), c.rms_eps)
        self._attention = LatentAttention(block, c)
        self._ffn_norm = RmsNorm(block.vector("ffn_norm", c.hidden), c.rms_eps)
        self._ffn: DenseFfn | MoeFfn
        if i < c.num_dense_layers:
            self._ffn = DenseFfn(block, c.hidden, c.dense_inter)
        else:
            self._ffn = MoeFfn(block, i, c, experts)
        self._guess: Callable[[Tensor], None] | None = None

    def guess_for(self, following: "_Layer") -> None:
        """Let the next layer's norm and router guess its experts from this layer's states."""
        ffn, norm = following._ffn, following._ffn_norm
        if isinstance(ffn, MoeFfn):
            self._guess = lambda x: ffn.guess(norm(x))

    def forward(
        self,
        x: Tensor,
        delta: Tensor | None,
        pages: LatentPages,
        table: PageTable,
        turns: Tensor,
        trace: list[Tensor] | None,
    ) -> Tensor:
        """Add `delta`, the layer before's result, to x (T, H) in place; return this layer's."""
        delta = self._attention.forward(self._attention_norm(x, delta), pages, table, turns)
        normed = self._ffn_norm(x, delta)
        if self._guess is not None:
            self._guess(x)
        if isinstance(self._ffn, MoeFfn):
            return self._ffn.forward(normed, trace)
        return self._ffn.forward(normed)


def _positions(spans: Sequence[Span]) -> Tensor:
    parts = [torch.arange(span.start, span.start + span.num_tokens) for span in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

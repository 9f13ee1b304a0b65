"""The deepseek2 decoder: token ids in, logits out, latents written to the caller's pages.

Knows nothing of text, sampling or of who is being served.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cuda_errors import CudaErrorGuard, loading_onto_gpu
from hybridmoe.device.interface import Pages, Tables
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.policy import PREFILL_TOKENS
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.kernels.ops import gather_rows
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.cuda_graphs import DecodeGraphs
from hybridmoe.model.damage import describe_damage
from hybridmoe.model.mla import LatentAttention
from hybridmoe.model.moe import DenseFfn, MoeFfn
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.rope import RotaryTable
from hybridmoe.model.router import Routing
from hybridmoe.model.threads import torch_threads
from hybridmoe.model.weights import Weights, routed_experts

__all__ = ["Decoder"]


class Decoder:
    """All layers of one model. Stateless between calls: positions come from the caller."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        experts: ExpertBackend | None = None,
        *,
        num_deferred: int = 0,
        vram_bytes: int | None = None,
    ) -> None:
        """Bind the weights. Errors: GGUFError naming a missing or misshapen tensor.

        experts: None = the native kernels, from the memory map. num_deferred: of a token's experts,
        those added one layer later. vram_bytes: of the GPU, what was planned for, for messages.
        """
        self.config = c = config
        self._file = weights.file
        if experts is None:
            experts = CpuExperts(routed_experts(Weights(weights.file), c))
        self.device = device = weights.device
        self._experts = experts
        with loading_onto_gpu("weights that every token uses", vram_bytes):
            self._embedding = weights.host_matrix("token_embd", c.vocab_size, c.hidden)
            self._norm = RmsNorm(device, weights.vector("output_norm", c.hidden), c.rms_eps)
            head = "output" if weights.has("output") else "token_embd"  # tied where a file has none
            self._head = weights.matrix(head, c.vocab_size, c.hidden)
            self._rope = RotaryTable(c)
            self._layers = [
                _Layer(weights, i, c, experts, num_deferred) for i in range(c.num_layers)
            ]
        self.guard = CudaErrorGuard(vram_bytes)
        self._graphs: DecodeGraphs | None = None
        self._graph_pages: Sequence[Pages] | None = None
        if experts.wants_prefetch_hints:
            for layer, following in pairwise(self._layers):
                layer.guess_for(following)

    def use_graphs(self, pages: Sequence[Pages]) -> None:
        """Capture decode steps over these pages, where the device and the experts allow it."""
        if self.device.is_capturable and self._experts.is_capturable:
            run = partial(self._run, pages)
            self._graphs, self._graph_pages = DecodeGraphs(self.device, run), pages

    def watch(self, hear: Callable[[int, Tensor], None]) -> None:
        """Call hear(layer, states (T, H)) in each layer between its attention and its FFN.

        Takes the place of guesses. The states change afterwards; captured steps are not heard.
        """
        for i, layer in enumerate(self._layers):
            layer.listener = partial(hear, i)

    def expert_stats(self) -> ExpertStats | None:
        """What the expert cache has done; None where there is none. From any thread."""
        return self._experts.stats()

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        pages: Sequence[Pages],
        trace: list[Routing] | None = None,
    ) -> Tensor:
        """Run a step of one or many sequences; returns the tokens' final states (T, H).

        token_ids: the sequences' tokens, one after the other, in the vocabulary. spans: where
        they belong; latents of all earlier positions are in the pages already. pages: one of each
        layer, as the device makes them. trace: gets each expert layer's choices. States and
        choices lie on the device.
        Errors: DiskError, DeviceError.
        """
        with torch_threads(1), self.device.active(), self.guard.watch(len(token_ids)):
            ids = torch.tensor(token_ids, dtype=torch.int64)
            x = self.device.upload(gather_rows(self._embedding, ids))  # (T, H)
            cos_sin = self.device.upload(self._rope.cos_sin(_positions(spans)))
            tables = self.device.tables(spans)
            self._experts.begin_step(len(token_ids))
            if self._graphs is not None and pages is self._graph_pages and _is_decoding(spans):
                states = self._graphs.forward(x, cos_sin, tables, trace)
            else:
                states = self._run(pages, x, cos_sin, tables, trace)
            self._experts.end_step()
            return states

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, V) f32, on the CPU, of final states (T, H)."""
        with torch_threads(1), self.device.active(), self.guard.watch(len(x)):
            return self.device.to_host(self.device.linear(self._norm(x), self._head))

    @torch.inference_mode()
    def is_finite(self, x: Tensor) -> bool:
        """True where numbers of a step, wherever they lie, hold neither NaN nor infinity."""
        with torch_threads(1), self.device.active(), self.guard.watch(len(x)):
            return bool(torch.isfinite(x.sum()))

    def find_damage(self, token_ids: Sequence[int], span: Span, pages: Sequence[Pages]) -> str:
        """Run a sequence's part of a step again and say, in one line, where NaN or infinity begins.

        Errors: as `forward`; DiskError.
        """
        bad: list[int] = []  # layers

        def hear(layer: int, states: Tensor) -> None:
            if not bad and not self.is_finite(states):
                bad.append(layer)

        before = [layer.listener for layer in self._layers]
        self.watch(hear)
        trace: list[Routing] = []
        try:
            states = self.forward(token_ids, [span], list(pages), trace)  # in no graph
        finally:
            for layer, listener in zip(self._layers, before, strict=True):
                layer.listener = listener
        num_layers = len(self._layers)
        hear(num_layers, states)
        first = self.config.num_dense_layers
        chosen = {first + i: set(ids.flatten().tolist()) for i, (ids, _) in enumerate(trace)}
        at = bad[0] if bad else None
        return describe_damage(self._file, at, num_layers, token_ids, chosen)

    def _run(
        self,
        pages: Sequence[Pages],
        x: Tensor,
        cos_sin: Tensor,
        tables: Tables,
        trace: list[Routing] | None,
    ) -> Tensor:
        """All layers, with nothing but work for the device."""
        residual: Tensor | None = None
        owed: Pending | None = None
        for layer, layer_pages in zip(self._layers, pages, strict=True):
            residual, owed = layer.forward(x, residual, layer_pages, tables, cos_sin, trace, owed)
        if residual is not None:
            x = x.add_(residual)
        return x if owed is None else x.add_(owed.result())


class _Layer:
    def __init__(
        self,
        weights: Weights,
        i: int,
        c: ModelConfig,
        experts: ExpertBackend,
        num_deferred: int,
    ) -> None:
        block = weights.block(i)
        device = block.device
        self._attention_norm = RmsNorm(device, block.vector("attn_norm", c.hidden), c.rms_eps)
        self._attention = LatentAttention(block, c)
        self._ffn_norm = RmsNorm(device, block.vector("ffn_norm", c.hidden), c.rms_eps)
        self._ffn: DenseFfn | MoeFfn
        if i < c.num_dense_layers:
            self._ffn = DenseFfn(block, c.hidden, c.dense_inter)
        else:
            self._ffn = MoeFfn(block, i, c, experts, num_deferred)
        self.listener: Callable[[Tensor], None] | None = None  # gets the states after attention

    def guess_for(self, following: "_Layer") -> None:
        """Let the next layer's norm and router guess its experts from this layer's states."""
        ffn, norm = following._ffn, following._ffn_norm
        if isinstance(ffn, MoeFfn):
            self.listener = lambda x: ffn.guess(norm(x))

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        pages: Pages,
        tables: Tables,
        cos_sin: Tensor,
        trace: list[Routing] | None,
        owed: Pending | None,
    ) -> tuple[Tensor, Pending | None]:
        """Add `residual`, the layer before's result, to x (T, H) in place; return this layer's.

        owed: what the layer before still owes, which this layer's result includes; what this one
        owes is returned.
        """
        residual = self._attention.forward(
            self._attention_norm(x, residual), pages, tables, cos_sin
        )
        normed = self._ffn_norm(x, residual)
        if self.listener is not None:
            self.listener(x)
        if isinstance(self._ffn, MoeFfn):
            return self._ffn.forward(normed, trace, owed)
        return self._ffn.forward(normed, owed), None


def _is_decoding(spans: Sequence[Span]) -> bool:
    return len(spans) <= PREFILL_TOKENS and all(span.num_tokens == 1 for span in spans)


def _positions(spans: Sequence[Span]) -> Tensor:
    parts = [torch.arange(span.start, span.start + span.num_tokens) for span in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

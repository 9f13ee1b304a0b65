"""Decoder of the deepseek2 family: token ids in, logits out, KV cache in the caller's pages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise, zip_longest
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS, ModelConfig
from hybridmoe.device.cpu import quantized
from hybridmoe.device.cuda_errors import CudaErrorGuard, loading_onto_gpu
from hybridmoe.device.interface import Device, Pages
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.kernels.fused_layer import FUSED_TOKENS
from hybridmoe.kernels.fused_step import FusedStep, StepResults
from hybridmoe.kernels.ops import gather_rows
from hybridmoe.kernels.paged_mla import BlockTables, KvPages, Span
from hybridmoe.model.cuda_graphs import Outputs
from hybridmoe.model.damage import describe_damage
from hybridmoe.model.indexer import selectors
from hybridmoe.model.layer import Layer
from hybridmoe.model.mtp import MtpLayer
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.rope import RotaryTable
from hybridmoe.model.router import Routing
from hybridmoe.model.stage import OnLayer, stages_of
from hybridmoe.model.threads import torch_threads
from hybridmoe.model.weights import Weights, routed_experts

__all__ = ["Decoder", "StateObserver"]

StateObserver = Callable[[int, Tensor], None]
_BRIEF_BYTES = 1 << 30  # of a file, all of which any memory gives within a second


class Decoder:
    """All layers of a model. Holds no sequence state: positions and pages are the caller's."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        experts: ExpertBackend | None = None,
        *,
        devices: Sequence[Device] = (),
        vram_bytes: int | None = None,
    ) -> None:
        """Bind the weights. Errors: GGUFError naming a missing or misshapen tensor.

        experts: None = `CpuExperts`. devices: of each loaded layer, the network's last one's of the
        head, too; empty = all on the device of `weights`. vram_bytes: planned VRAM, for error
        messages.
        """
        self.config = c = config
        self._file = weights.file
        if experts is None:
            experts = CpuExperts(routed_experts(Weights(weights.file), c))
        self.devices = tuple(devices) or (weights.device,) * c.num_loaded_layers  # of each layer
        network = self.devices[: c.num_layers]
        self.device = network[-1]  # of the head
        self._experts = experts
        with loading_onto_gpu("weights that every token uses", vram_bytes):
            self._embedding = weights.host_matrix("token_embd", c.vocab_size, c.hidden)
            top = weights.on(self.device)
            self._norm = RmsNorm(self.device, top.vector("output_norm", c.hidden), c.rms_eps)
            head = "output" if weights.has("output") else "token_embd"  # tied if the file has none
            self._head = top.matrix(head, c.vocab_size, c.hidden)
            self._rope = RotaryTable(c)
            blocks = [weights.on(device).block(i) for i, device in enumerate(self.devices)]
            chosen = selectors(blocks[: c.num_layers], c)
            layers = [
                Layer(block, i, c, experts, selector)
                for i, (block, selector) in enumerate(zip_longest(blocks, chosen))
            ]
            self._layers = layers[: c.num_layers]
            self._mtp = None
            if c.runs_mtp:
                own, shared = weights.on(self.devices[-1]), (self.device, self._head)
                self._mtp = MtpLayer(own, c, layers[-1], self._embedding, shared)
        self._stages = stages_of(network, self._layers)
        self.guard = CudaErrorGuard(vram_bytes)
        self._graph_pages: Sequence[Pages] | None = None
        self._outputs: Outputs | None = None  # of the last step, if it has computed its logits
        if experts.wants_prefetch_hints:
            for layer, following in pairwise(self._layers):
                layer.hint_to(following)
        self._fused_step = self._fused()
        self._num_observers = 0

    def use_graphs(self, pages: Sequence[Pages]) -> None:
        """Run decode steps over these pages as CUDA graphs, if devices and experts allow it."""
        is_capturable = all(stage.device.is_capturable for stage in self._stages)
        if is_capturable and self._experts.is_capturable:
            for stage in self._stages:
                is_last = stage is self._stages[-1]
                head = self._logits if is_last else None
                stage.use_graphs(pages, self._experts.replayed, head, self._experts.trial)
            self._graph_pages = pages

    @contextmanager
    def observe(self, observer: StateObserver) -> Iterator[None]:
        """Call observer(layer, states (T, H)) in each layer, after attention and before the FFN.

        Within the block it replaces prefetch hints. The states change afterwards; steps that a CUDA
        graph replays are not observed.
        """
        self._num_observers += 1
        before = [layer.observer for layer in self._layers]
        for i, layer in enumerate(self._layers):
            layer.observer = partial(observer, i)
        try:
            yield
        finally:
            for layer, previous in zip(self._layers, before, strict=True):
                layer.observer = previous
            self._num_observers -= 1

    @property
    def outage(self) -> str | None:
        """Line on experts that are away for now; see `ExpertBackend.outage`. Thread-safe."""
        return self._experts.outage

    def abandon_steps_when(self, is_unwanted: Callable[[], bool]) -> None:
        """Give up steps that wait for a disk that hangs; see `ExpertBackend.abandon_when`."""
        self._experts.abandon_when(is_unwanted)

    def expert_tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Find what served experts of the last step's trace; see `ExpertBackend.tiers`."""
        return self._experts.tiers(ids)

    def expert_stats(self) -> ExpertStats | None:
        """Counters of the expert cache; None without one. Thread-safe."""
        return self._experts.stats()

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        pages: Sequence[Pages],
        trace: list[Routing] | None = None,
        on_layer: OnLayer | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Run a step of one or more sequences. Returns the tokens' final states (T, H).

        token_ids: of all sequences, in the vocabulary. spans: their sequences and positions; the KV
        cache of all earlier positions must be filled. pages: of each layer. trace: receives the
        routing of each MoE layer. on_layer: called after each layer, except of a CUDA graph and of
        few tokens of a small file, which take less than a second.
        before: (S, H), final states before each sequence's tokens, for the MTP layer; None =
        unknown, zeros. States are on the head's device, routing on its layer's.
        Errors: DiskError, DeviceError.
        """
        first = self._stages[0].device
        if len(token_ids) <= FUSED_TOKENS and self._file.num_bytes <= _BRIEF_BYTES:
            on_layer = None  # so that all layers may be one native call
        with torch_threads(1), first.active(), self.guard.watch(len(token_ids)):
            ids = torch.tensor(token_ids, dtype=torch.int64)
            outputs = Outputs(gather_rows(self._embedding, ids), None)
            cos_sin = self._rope.cos_sin(_runs(spans))
            self._experts.begin_step(len(token_ids))
            with_graphs = pages is self._graph_pages and _is_decoding(spans)
            for stage in self._stages:
                outputs = stage.forward(
                    outputs.states,
                    pages,
                    cos_sin,
                    spans,
                    trace,
                    with_graphs=with_graphs,
                    on_layer=on_layer,
                )
            if self._mtp is not None:
                self._append_mtp(self._mtp, ids, outputs.states, before, spans, pages[-1], cos_sin)
            self._experts.end_step()
            self._outputs = None if outputs.logits is None else outputs
            return outputs.states

    def decode(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        pages: Sequence[Pages],
        before: Tensor | None = None,
    ) -> StepResults | None:
        """Run a step of few tokens and compute the logits of each; valid until the next step.

        None if it is no single native call: then `forward` and `logits` have the same bits. Takes
        the arguments of `forward`. Errors: as `forward`.
        """
        step = self._fused_step
        if step is None or self._num_observers or len(token_ids) > PREFILL_TOKENS:
            return None
        tables = BlockTables(spans)
        if tables.num_expanded:
            return None
        self._outputs = None
        rotations = self._rope.rows(tables.most_positions)
        results = step.forward(token_ids, tables, cast(Sequence[KvPages], pages), rotations)
        if self._mtp is not None:
            with torch.inference_mode(), torch_threads(1):
                ids, cos_sin = torch.tensor(token_ids), self._rope.cos_sin(_runs(spans))
                states = results.states
                self._append_mtp(self._mtp, ids, states, before, spans, pages[-1], cos_sin)
        return results

    @torch.inference_mode()
    def draft(
        self, token_ids: Sequence[int], states: Tensor, spans: Sequence[Span], pages: Pages
    ) -> tuple[Tensor, Tensor]:
        """Run the MTP layer on one token of each sequence, to draft the one behind it.

        states: (S, H), of the tokens before them: `head_states`, or those of the last call for its
        own drafts. spans: their positions; earlier ones are filled by `forward`, or this. pages: of
        the MTP layer. Returns states for a next call, and logits (S, V) on the CPU.
        Errors: as `forward`.
        """
        assert self._mtp is not None, "the model has no MTP layer"
        first, device = self._stages[0].device, self._mtp.device
        with torch_threads(1), first.active(), self.guard.watch(len(token_ids)):
            self._outputs = None
            ids, cos_sin = torch.tensor(token_ids), self._rope.cos_sin(_runs(spans))
            self._experts.begin_step(len(token_ids))
            with device.active():
                tables = device.tables(spans)
                states = self._mtp.forward(ids, states, pages, tables, device.upload(cos_sin))
            self._experts.end_step()
            return states, self._mtp.logits(states)

    @torch.inference_mode()
    def head_states(self, states: Tensor) -> Tensor:
        """Norm final states (T, H), as the head and the MTP layer take them."""
        with torch_threads(1), self.device.active(), self.guard.watch(len(states)):
            return self._norm(states)

    def _append_mtp(
        self,
        mtp: MtpLayer,
        token_ids: Tensor,
        states: Tensor,
        before: Tensor | None,
        spans: Sequence[Span],
        pages: Pages,
        cos_sin: Tensor,
    ) -> None:
        """Fill the MTP layer's KV cache for a step, from the states of the tokens before."""
        firsts = [0, *accumulate(span.num_tokens for span in spans)][:-1]
        with self.device.active():
            previous = states.roll(1, 0)
            previous[firsts] = 0.0 if before is None else before
            previous = self._norm(previous)
        device = mtp.device
        with device.active():
            tables = device.tables(spans)
            mtp.append(token_ids, previous, pages, tables, device.upload(cos_sin))

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graph of a step of one token, so that no response waits for it.

        Only before the first step: page 0 is written. Errors: DeviceError.
        """
        if self._graph_pages is None:
            return
        first, spans = self._stages[0].device, [Span(1, 0, (0,))]
        with torch_threads(1), first.active(), self.guard.watch(1):
            x = gather_rows(self._embedding, torch.zeros(1, dtype=torch.int64))
            cos_sin = self._rope.cos_sin(_runs(spans))
            self._experts.begin_step(1)  # never ended: the next step discards it
            for stage in self._stages:
                x = stage.capture(x, cos_sin, spans).states

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Compute logits (T, V) f32, on the CPU, from final states (T, H).

        Those of a graph have come with the states, and are valid until the next step.
        """
        with torch_threads(1), self.device.active(), self.guard.watch(len(x)):
            outputs = self._outputs
            if outputs is not None and x is outputs.states:
                assert outputs.logits is not None
                self.device.synchronize()
                return outputs.logits
            return self.device.to_host(self._logits(x))

    @torch.inference_mode()
    def is_finite(self, x: Tensor) -> bool:
        """Return True if a tensor, on the device or the CPU, has neither NaN nor infinity."""
        with torch_threads(1), self.device.active(), self.guard.watch(len(x)):
            return bool(torch.isfinite(x.sum()))

    def _fused(self) -> FusedStep | None:
        """All of a step of few tokens as one native call, if it needs no Python."""
        layers = self._stages[0].fused()
        if layers is None or len(self._stages) > 1:
            return None
        norm, head = self._norm, quantized(self._head)
        return FusedStep(self._embedding, layers, norm.weight, norm.eps, head)

    def _logits(self, x: Tensor) -> Tensor:
        return self.device.linear(self._norm(x), self._head)

    def find_damage(self, token_ids: Sequence[int], span: Span, pages: Sequence[Pages]) -> str:
        """Repeat a sequence's chunk of a step; describe in one line where NaN or infinity begins.

        Errors: as `forward`; DiskError.
        """
        damaged: list[int] = []  # layers
        trace: list[Routing] = []

        def observer(layer: int, states: Tensor) -> None:
            if not damaged and not self.is_finite(states):
                damaged.append(layer)

        with self.observe(observer):
            states = self.forward(token_ids, [span], list(pages), trace)  # a copy: in no graph
        num_layers = len(self._layers)
        observer(num_layers, states)
        first = self.config.num_dense_layers
        chosen = {first + i: set(ids.flatten().tolist()) for i, (ids, _) in enumerate(trace)}
        layer = damaged[0] if damaged else None
        return describe_damage(self._file, layer, num_layers, token_ids, chosen)


def _is_decoding(spans: Sequence[Span]) -> bool:
    return len(spans) <= PREFILL_TOKENS and all(span.num_tokens == 1 for span in spans)


def _runs(spans: Sequence[Span]) -> list[tuple[int, int]]:
    return [(span.start, span.start + span.num_tokens) for span in spans]

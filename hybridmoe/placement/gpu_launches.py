"""List of the kernel launches that a model needs, found by running its network without memory.

The decoder runs on torch's meta device, on which tensors have shapes and types only: one layer of
each kind, one step of each kind. Of the weights, one row of the embedding is read.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS, ModelConfig, kv_row_bytes
from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_block_tables import PROMPT_TOKENS, CudaBlockTables
from hybridmoe.device.interface import Matrix, Pages, Tables
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.env import uses_host_functions
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.names import parse_name
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.expert_groups import FEW_ROWS, MANY_ROWS, ExpertGroup, LayerStates
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of
from hybridmoe.kernels.triton.hand_over import receive, send
from hybridmoe.kernels.triton.launches import Launch, record_launches
from hybridmoe.kernels.triton.matrix import MATRIX_TYPES, DeviceMatrix
from hybridmoe.kernels.triton.vector_gemv import MAX_VECTOR_TOKENS
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import BlockWeights, Weights, routed_experts
from hybridmoe.planning.plan import Plan

__all__ = ["GpuPart", "model_launches", "run_steps"]

_META = torch.device("meta")

# One token, two, a few, several, a short prompt, a long one. Others differ in numbers no binary
# knows.
_KINDS_OF_STEPS = (
    [Span(1, 0, (0,))],
    [Span(1, 0, (page,)) for page in range(2)],
    [Span(1, 0, (page,)) for page in range(MAX_VECTOR_TOKENS)],
    [Span(MAX_VECTOR_TOKENS + 1, 0, (0,))],
    [Span(PREFILL_TOKENS + 1, 0, (0,))],
    [Span(PROMPT_TOKENS, 0, tuple(range(-(-PROMPT_TOKENS // PAGE_TOKENS))))],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPart:
    """Part of a model that a GPU computes."""

    kv_type: str
    is_on_cpu: Callable[[str], bool] = lambda name: False  # of a tensor's name, as in `CudaDevice`
    has_slots: bool = True  # experts are computed in VRAM slots
    streams_experts: bool = True  # experts of prompts are computed on the GPU
    hands_over: bool = True  # captured steps hand layers over by counters

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Take it from a memory plan."""
        return cls(
            kv_type=plan.engine.kv_type,
            is_on_cpu=plan.problem.rules.is_on_cpu,
            has_slots=plan.num_vram_slots > 0,
            streams_experts=plan.streams_experts,
            hands_over=not uses_host_functions(),
        )


def model_launches(
    file: GGUFFile, config: ModelConfig, part: GpuPart, num_multiprocessors: int
) -> list[Launch]:
    """List the launches of all steps of a model, one of each binary. Errors: as `run_steps`."""
    with record_launches(num_multiprocessors) as found:
        run_steps(file, config, part)
    return list(found.values())


@torch.inference_mode()
def run_steps(
    file: GGUFFile,
    config: ModelConfig,
    part: GpuPart,
    steps: Sequence[Sequence[Span]] | None = None,
) -> None:
    """Run steps through one layer of each kind, on the meta device.

    steps: None = one of each kind.
    Errors: GGUFError; ConfigError for a KV type without GPU kernels.
    """
    layers = _layers_of_each_kind(file, config, part.is_on_cpu)
    config = config.of_layers(layers)
    device = _MetaDevice(part.is_on_cpu)
    weights = _MetaWeights(file, device, layers)
    decoder = Decoder(weights, config, _MetaExperts(routed_experts(weights, config), part))
    for spans in _kinds_of_steps(config) if steps is None else steps:
        num_tokens = sum(span.num_tokens for span in spans)
        num_pages = max(page for span in spans for page in span.pages) + 1
        pages = [_pages(device, config, part.kv_type, num_pages)] * len(layers)
        decoder.logits(decoder.forward([0] * num_tokens, spans, pages))


def _kinds_of_steps(config: ModelConfig) -> list[Sequence[Span]]:
    """One of each kind; with an indexer, a token that selects its positions, too."""
    steps: list[Sequence[Span]] = list(_KINDS_OF_STEPS)
    if (indexer := config.indexer) is not None:
        steps.append([Span(1, indexer.top_k, tuple(range(indexer.top_k // PAGE_TOKENS + 1)))])
    return steps


def _layers_of_each_kind(
    file: GGUFFile, config: ModelConfig, is_on_cpu: Callable[[str], bool]
) -> list[int]:
    """Find the first layer of each set of tensors, types and places."""
    kinds: dict[int, list[tuple[str, QuantType, bool]]] = {}
    for tensor in file.tensors.values():
        layer, role, _ = parse_name(tensor.name)
        if layer is not None and layer < config.num_layers:
            kinds.setdefault(layer, []).append((role, tensor.type, is_on_cpu(tensor.name)))
    first: dict[tuple[object, ...], int] = {}
    for layer in sorted(kinds):
        first.setdefault(tuple(sorted(kinds[layer])), layer)
    return list(first.values())


class _MetaDevice(CudaDevice):
    """GPU without memory: its tensors have shapes and types only."""

    def __init__(self, is_on_cpu: Callable[[str], bool]) -> None:
        super().__init__(_META, is_on_cpu)

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def to_host(self, t: Tensor) -> Tensor:
        return t

    def matrix(self, w: QuantMatrix, name: str) -> DeviceMatrix | QuantMatrix:
        if self._is_on_cpu(name):
            return w
        kind = w.type if w.type in MATRIX_TYPES else QuantType.BF16
        return DeviceMatrix.empty(kind, (w.batch, w.rows, w.cols), self.torch)

    def linear(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return x.new_empty(len(x), w.rows)
        return super().linear(x, w, out)

    def attend(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        k_b: Matrix,
        v_b: Matrix,
        pages: Pages,
        tables: Tables,
        scale: float,
        selected: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(tables, CudaBlockTables)
        if not tables.prompts or selected is not None:
            return super().attend(q_nope, q_rope, k_b, v_b, pages, tables, scale, selected)
        self._expanded(k_b)  # the rest is torch's, which would load its compiler here: a second
        self._expanded(v_b)
        return q_nope.new_empty(*q_nope.shape[:2], v_b.rows)

    def _batched(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return x.new_empty(w.batch, x.shape[1], w.rows)
        return super()._batched(x, w, out)

    def _expanded(self, w: Matrix) -> Tensor:
        if isinstance(w, QuantMatrix):
            return torch.empty(w.batch, w.rows, w.cols, dtype=torch.bfloat16, device=_META)
        return super()._expanded(w)


class _MetaWeights(Weights):
    """Some layers' weights, of which no byte is read."""

    def __init__(self, file: GGUFFile, device: _MetaDevice, layers: Sequence[int]) -> None:
        """layers: numbers in the file, for layers 0, 1, ... here."""
        super().__init__(file, device=device)
        self._layers = layers

    def block(self, layer: int) -> BlockWeights:
        return _MetaBlock(self, f"blk.{self._layers[layer]}.")

    def vector(self, name: str, size: int, suffix: str = "weight") -> Tensor:
        return torch.empty(size, device=_META)


class _MetaBlock(BlockWeights):
    def latent_projections(self, c: ModelConfig) -> tuple[Matrix, Matrix]:
        if not self.has("attn_kv_b"):
            return super().latent_projections(c)
        packed = self.host_matrix("attn_kv_b", c.num_heads * (c.nope_dim + c.v_dim), c.kv_lora_rank)
        keys = np.empty((c.num_heads, c.kv_lora_rank, c.nope_dim), np.float32)
        values = packed.data[: c.num_heads * c.v_dim * packed.row_bytes]
        v_b = QuantMatrix(values, packed.type, c.num_heads, c.v_dim, c.kv_lora_rank)
        name = f"{self._prefix}attn_kv_b.weight"
        return self.device.matrix(QuantMatrix.from_array(keys), name), self.device.matrix(v_b, name)


class _MetaExperts(ExpertBackend):
    """Launches what the GPU computes of routed experts, whatever is resident."""

    def __init__(self, experts: RoutedExperts, part: GpuPart) -> None:
        self._part = part
        self._layouts = {n: layout_of(*weights) for n, weights in experts.layers.items()}

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        out, layout = x.new_empty(x.shape), self._layouts[layer]
        if self._part.hands_over and len(x) <= PREFILL_TOKENS:
            _hand_over(x, ids, weights)
        if layout is None:  # a type without a GPU kernel
            return Ready(out)
        if len(x) <= PREFILL_TOKENS:
            if self._part.has_slots:
                slots = _slots(layout.packed)
                return Ready(expert_ffn(x, ids, weights, slots, layout.packed))
        elif self._part.streams_experts:
            self._add(x, ids, weights, out, layout)
            if self._part.has_slots:
                self._add(x, ids, weights, out, layout.packed)
        return Ready(out)

    def _add(
        self, x: Tensor, ids: Tensor, weights: Tensor, out: Tensor, layout: SlotLayout
    ) -> None:
        """Launch what a prompt's experts need, with tiles of few and of many rows."""

        def table(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=_META)

        states = LayerStates(x.bfloat16(), weights, table(ids.numel()), table(*ids.shape), out)
        group, slots = ExpertGroup(table(1), table(1, 3), 0, len(x)), _slots(layout)
        for rows in (FEW_ROWS, MANY_ROWS):
            add_experts(states, group, slots, layout, rows)


def _slots(layout: SlotLayout) -> Tensor:
    return torch.empty(1, layout.slot_bytes, dtype=torch.uint8, device=_META)


def _hand_over(x: Tensor, ids: Tensor, weights: Tensor) -> None:
    """Send to the host, and receive with a part of the GPU's and without."""
    host_x, host_ids, host_weights = (
        torch.empty(t.shape, dtype=t.dtype) for t in (x, ids, weights)
    )
    counter = torch.empty(1, dtype=torch.int32)
    count = torch.empty(1, dtype=torch.int32, device=_META)
    send(x, ids, weights, (host_x, host_ids, host_weights), count, counter)
    for part in (x, None):
        receive(x, part, host_x, count, counter)


def _pages(device: _MetaDevice, c: ModelConfig, kv_type: str, num_pages: int) -> Pages:
    def memory(dim: int) -> Tensor:
        return device.empty_bytes(num_pages, PAGE_TOKENS, kv_row_bytes(kv_type, dim))

    index_keys = None
    if (indexer := c.indexer) is not None:
        index_keys = device.pages(memory(indexer.key_dim), kv_type, indexer.key_dim)
    return device.pages(memory(c.latent_dim), kv_type, c.latent_dim, index_keys)

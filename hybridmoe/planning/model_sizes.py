"""Sizes of a model's parts that need memory, and of what one token reads, by tensor type.

Takes names, types, shapes and sizes of tensors, and the configuration; no data.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from hybridmoe.config import ModelConfig
from hybridmoe.errors import GGUFError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.gguf.names import (
    FUSED_ROLE,
    MTP_EMBEDDING,
    MTP_HEAD,
    is_expert_tensor,
    parse_name,
    part_of,
    unused_names,
)
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware.disk import direct_buffer_bytes

__all__ = ["GPU_EXPERT_TYPES", "GPU_TYPES", "ModelSizes", "Part", "sizes_of"]

# Types of the GPU's kernels (kernels.triton.matrix), which this cannot import.
_GPU_TYPES = (
    "BF16 F16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K"
    " IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 Q1_0 Q2_0"
    " Q6_0 IQ2_K IQ2_KS IQ2_KL IQ3_K IQ3_KS IQ4_K IQ4_KS IQ4_KSS IQ5_K IQ5_KS IQ6_K"
)
GPU_EXPERT_TYPES = frozenset(QuantType[name] for name in _GPU_TYPES.split())
GPU_TYPES = GPU_EXPERT_TYPES | {QuantType.F32}

_PACKED_TYPES = frozenset(QuantType[name] for name in ("Q8_0", "Q4_0", "Q6_K"))
_PACKED_ROW_BYTES = 16  # rows of these begin at multiples (kernels.triton.packing)


class Part(NamedTuple):
    """Matrices of one type, summed."""

    type: QuantType
    num_params: int
    num_bytes: int
    num_rows: int = 0


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sums over one model's tensors, without those that the decoder does not use."""

    config: ModelConfig
    embedding_bytes: int
    head: tuple[Part, ...]  # the output matrix, or the embedding in its place
    is_tied: bool  # the head is the embedding
    dense: tuple[Part, ...]  # all else that every token uses, without routed experts
    experts: tuple[tuple[Part, ...], ...]  # of each MoE layer: one expert
    piece_bytes: tuple[int, ...]  # largest down, gate and up of any layer's expert
    gpu_bytes: int  # of head and dense on a GPU, where types without a kernel are bfloat16
    cpu_bytes: int = 0  # of head and dense: pinned to the CPU by placement rules
    only: range | None = None  # layers that are summed; None = all
    shared: tuple[Part, ...] = ()  # of `dense`: the shared experts
    by_layer: tuple[
        "ModelSizes", ...
    ] = ()  # embedding with the network's first, head with its last
    packed_piece_bytes: tuple[int, ...] = ()  # as `piece_bytes`, in VRAM; empty: the same

    @property
    def layers(self) -> range:
        """Numbers of the layers that are summed."""
        return range(self.config.num_loaded_layers) if self.only is None else self.only

    @property
    def moe_layers(self) -> range:
        """Numbers of those with experts."""
        return range(max(self.layers.start, self.config.num_dense_layers), self.layers.stop)

    def of_layers(self, layers: range) -> "ModelSizes":
        """Sum some layers alone, which are one GPU's."""
        first = self.layers.start
        return _sum(self.config, self.by_layer[layers.start - first : layers.stop - first], layers)

    @property
    def network(self) -> "ModelSizes":
        """Sizes without the layer that drafts: what a token of a response needs."""
        end = min(self.layers.stop, self.config.num_layers)
        is_whole = end == self.layers.stop
        return self if is_whole else self.of_layers(range(self.layers.start, end))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a VRAM expert slot, which takes an expert of any layer."""
        return sum(self.packed_piece_bytes or self.piece_bytes)

    @property
    def buffer_parts(self) -> tuple[tuple[int, int, int], ...]:
        """Bytes that direct reads of an expert need for gate, up and down, by MoE layer.

        Depends on sizes only, since a buffer takes a piece from any offset in the file.
        """
        found = []
        for layer in self.by_layer:
            if layer.piece_bytes:
                down, gate, up = map(direct_buffer_bytes, layer.piece_bytes)
                found.append((gate, up, down))
        return tuple(found)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a RAM expert slot that takes an expert of any layer."""
        return sum(map(direct_buffer_bytes, self.piece_bytes))

    @property
    def types_without_gpu_kernel(self) -> tuple[str, ...]:
        """Names of the routed experts' types for which GPUs have no kernel."""
        types = {part.type for parts in self.experts for part in parts}
        return tuple(sorted(type.name for type in types - GPU_EXPERT_TYPES))

    @property
    def dense_bytes(self) -> int:
        """Bytes that every token reads, head included, without routed experts."""
        return _bytes(self.dense) + _bytes(self.head)

    @property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of one expert, by MoE layer."""
        return tuple(_bytes(parts) for parts in self.experts)

    @property
    def all_expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(self.expert_bytes) * self.config.num_experts

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors that the decoder uses."""
        tied = 0 if self.is_tied else self.embedding_bytes
        return tied + self.dense_bytes + self.all_expert_bytes

    @property
    def num_experts(self) -> int:
        """Routed experts of all layers."""
        return self.config.num_experts * len(self.experts)

    @property
    def working_set(self) -> int:
        """Experts that one token uses, in all layers."""
        return len(self.experts) * self.config.top_k


def sizes_of(
    tensors: Iterable[TensorLike],
    config: ModelConfig,
    is_on_cpu: Callable[[str], bool] = lambda name: False,
) -> ModelSizes:
    """Sum up a model's tensors.

    is_on_cpu: True for the name of a tensor that placement rules pin to the CPU.
    Errors: GGUFError where routed experts are missing.
    """
    tensors = list(tensors)
    unused = unused_names([tensor.name for tensor in tensors])
    named = [(parse_name(tensor.name), tensor) for tensor in tensors if tensor.name not in unused]
    is_tied = not any(part_of(name.role) == "output" for name, _ in named)
    sums = [_LayerSum(config, number) for number in range(config.num_loaded_layers)]
    last = sums[config.num_layers - 1]
    for (layer, role, _), tensor in named:
        shape = tensor.shape
        part = Part(tensor.type, prod(shape), tensor.num_bytes, prod(shape[:-1]))
        kind = part_of(role)
        if role == MTP_EMBEDDING and layer == config.num_layers < len(sums):
            sums[layer].embedding_bytes += part.num_bytes
        elif role == MTP_HEAD and layer == config.num_layers < len(sums):
            sums[layer].add_dense(part, "output", is_on_cpu=is_on_cpu(tensor.name))
        elif kind == "embedding":
            sums[0].embedding_bytes += part.num_bytes
            if is_tied:
                last.add_dense(part, "output", is_on_cpu=False)
        elif layer is None or layer < config.num_loaded_layers:
            layer_sum = last if layer is None else sums[layer]
            if is_expert_tensor(tensor.name):
                layer_sum.add_experts(role, part)
            else:
                layer_sum.add_dense(part, kind, is_on_cpu=is_on_cpu(tensor.name))
    return _sum(config, [layer.sizes(is_tied) for layer in sums], None)


class _LayerSum:
    """Sums of one layer's tensors."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        self.embedding_bytes = 0
        self._config, self._number = config, number
        self._head: list[Part] = []
        self._dense: list[Part] = []
        self._shared: list[Part] = []
        self._experts: dict[str, Part] = {}  # one expert's, by name
        self._packed: dict[str, int] = {}  # their bytes in VRAM
        self._gpu_bytes = self._cpu_bytes = 0

    def add_experts(self, name: str, part: Part) -> None:
        names = ("ffn_gate_exps", "ffn_up_exps") if name == FUSED_ROLE else (name,)
        count = self._config.num_experts * len(names)
        one = Part(part.type, *(sum // count for sum in part[1:]))
        for name in names:
            self._experts[name], self._packed[name] = one, _packed_bytes(one)

    def add_dense(self, part: Part, kind: str, *, is_on_cpu: bool) -> None:
        (self._head if kind == "output" else self._dense).append(part)
        if kind == "shared expert" and not is_on_cpu:
            self._shared.append(part)
        if is_on_cpu:
            self._cpu_bytes += part.num_bytes
        else:
            self._gpu_bytes += _gpu_bytes(part)

    def sizes(self, is_tied: bool) -> ModelSizes:
        """Errors: GGUFError for a layer without gate, up and down."""
        has_experts = self._number >= self._config.num_dense_layers
        if has_experts and len(self._experts) != 3:
            raise GGUFError(
                f"blk.{self._number}: {len(self._experts)} tensors of routed experts, expected 3"
                " (gate, up, down)"
            )
        parts = [self._experts[name] for name in sorted(self._experts)] if has_experts else []
        return ModelSizes(
            config=self._config,
            embedding_bytes=self.embedding_bytes,
            head=_by_type(self._head),
            is_tied=is_tied,
            dense=_by_type(self._dense),
            experts=(_by_type(parts),) if has_experts else (),
            piece_bytes=tuple(part.num_bytes for part in parts),
            packed_piece_bytes=tuple(self._packed[n] for n in sorted(self._packed))
            if parts
            else (),
            gpu_bytes=self._gpu_bytes,
            cpu_bytes=self._cpu_bytes,
            only=range(self._number, self._number + 1),
            shared=_by_type(self._shared),
        )


def _sum(config: ModelConfig, layers: Sequence[ModelSizes], only: range | None) -> ModelSizes:
    pieces = [layer.piece_bytes for layer in layers if layer.piece_bytes]
    packed = [layer.packed_piece_bytes for layer in layers if layer.packed_piece_bytes]
    return ModelSizes(
        config=config,
        embedding_bytes=sum(layer.embedding_bytes for layer in layers),
        head=_by_type(part for layer in layers for part in layer.head),
        is_tied=any(layer.is_tied for layer in layers),
        dense=_by_type(part for layer in layers for part in layer.dense),
        experts=tuple(parts for layer in layers for parts in layer.experts),
        piece_bytes=tuple(map(max, zip(*pieces, strict=True))),
        packed_piece_bytes=tuple(map(max, zip(*packed, strict=True))),
        gpu_bytes=sum(layer.gpu_bytes for layer in layers),
        cpu_bytes=sum(layer.cpu_bytes for layer in layers),
        only=only,
        shared=_by_type(part for layer in layers for part in layer.shared),
        by_layer=tuple(layers),
    )


def _gpu_bytes(part: Part) -> int:
    return _packed_bytes(part) if part.type in GPU_TYPES else 2 * part.num_params


def _packed_bytes(part: Part) -> int:
    if part.type not in _PACKED_TYPES:
        return part.num_bytes
    row_bytes = part.num_bytes // part.num_rows
    return part.num_bytes + part.num_rows * (-row_bytes % _PACKED_ROW_BYTES)


def _by_type(parts: Iterable[Part]) -> tuple[Part, ...]:
    sums: dict[QuantType, Part] = {}
    for part in parts:
        old = sums.get(part.type, Part(part.type, 0, 0))
        sums[part.type] = Part(part.type, *map(int.__add__, old[1:], part[1:]))
    return tuple(sums.values())


def _bytes(parts: Iterable[Part]) -> int:
    return sum(part.num_bytes for part in parts)

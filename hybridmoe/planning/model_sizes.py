"""Sizes of a model's parts that need memory, and of what one token reads, by tensor type.

Takes names, types, shapes and sizes of tensors, and the configuration; no data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from gguf import GGMLQuantizationType

from hybridmoe.config import ModelConfig
from hybridmoe.errors import GGUFError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.gguf.names import parse_name, part_of
from hybridmoe.hardware.disk import direct_buffer_bytes

__all__ = ["GPU_EXPERT_TYPES", "GPU_TYPES", "ModelSizes", "Part", "sizes_of"]

# Types of the GPU's kernels (kernels.triton.matrix), which this cannot import.
_GPU_TYPES = (
    "BF16 F16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K"
    " IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4"
)
GPU_EXPERT_TYPES = frozenset(GGMLQuantizationType[name] for name in _GPU_TYPES.split())
GPU_TYPES = GPU_EXPERT_TYPES | {GGMLQuantizationType.F32}


class Part(NamedTuple):
    """Matrices of one type, summed."""

    type: GGMLQuantizationType
    num_params: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sums over one model's tensors, without those that the decoder does not use."""

    config: ModelConfig
    embedding_bytes: int
    head: tuple[Part, ...]  # the output matrix, or the embedding in its place
    is_tied: bool  # the head is the embedding
    dense: tuple[Part, ...]  # all else that every token uses, without routed experts
    experts: tuple[tuple[Part, ...], ...]  # of each MoE layer: one expert
    piece_bytes: tuple[int, ...]  # largest gate, up and down of any layer's expert
    gpu_bytes: int  # of head and dense on a GPU, where types without a kernel are bfloat16
    cpu_bytes: int = 0  # of head and dense: pinned to the CPU by placement rules

    @property
    def slot_bytes(self) -> int:
        """Bytes of a VRAM expert slot, which takes an expert of any layer."""
        return sum(self.piece_bytes)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a RAM expert slot that direct reads fill: `experts.disk.arena` has the same.

        Depends on sizes only, since a buffer takes a piece from any offset in the file.
        """
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
        return self.config.num_experts * self.config.num_moe_layers

    @property
    def working_set(self) -> int:
        """Experts that one token uses, in all layers."""
        return self.config.num_moe_layers * self.config.top_k


def sizes_of(
    tensors: Iterable[TensorLike],
    config: ModelConfig,
    is_on_cpu: Callable[[str], bool] = lambda name: False,
) -> ModelSizes:
    """Sum up a model's tensors.

    is_on_cpu: True for the name of a tensor that placement rules pin to the CPU.
    Errors: GGUFError where routed experts are missing.
    """
    c = config
    gpu_bytes = cpu_bytes = 0
    embedding_bytes = 0
    embedding: list[Part] = []
    head: list[Part] = []
    dense: list[Part] = []
    largest: dict[str, int] = {}
    experts: dict[int, list[Part]] = {i: [] for i in range(c.num_dense_layers, c.num_layers)}
    for tensor in tensors:
        layer, role, _ = parse_name(tensor.name)
        part = Part(tensor.type, prod(tensor.shape), tensor.num_bytes)
        kind = part_of(role)
        if layer is not None and layer >= c.num_layers:
            continue
        is_dense = kind not in ("embedding", "routed experts")
        if is_dense and is_on_cpu(tensor.name):
            cpu_bytes += tensor.num_bytes
        elif is_dense:
            gpu_bytes += _gpu_bytes(part)
        if kind == "embedding":
            embedding_bytes += tensor.num_bytes
            embedding.append(part)
        elif kind == "output":
            head.append(part)
        elif kind == "routed experts" and layer in experts:
            per_expert = Part(
                part.type, part.num_params // c.num_experts, part.num_bytes // c.num_experts
            )
            experts[layer].append(per_expert)
            largest[role] = max(largest.get(role, 0), per_expert.num_bytes)
        else:
            dense.append(part)
    _check_parts(experts)
    if not head:
        gpu_bytes += sum(_gpu_bytes(part) for part in embedding)
    return ModelSizes(
        config=c,
        embedding_bytes=embedding_bytes,
        head=_by_type(head or embedding),
        is_tied=not head,
        dense=_by_type(dense),
        experts=tuple(_by_type(parts) for parts in experts.values()),
        piece_bytes=tuple(largest.values()),
        gpu_bytes=gpu_bytes,
        cpu_bytes=cpu_bytes,
    )


def _check_parts(experts: Mapping[int, Sequence[Part]]) -> None:
    """Errors: GGUFError for a layer without gate, up and down."""
    for layer, parts in experts.items():
        if len(parts) != 3:
            raise GGUFError(
                f"blk.{layer}: {len(parts)} tensors of routed experts, expected 3 (gate, up, down)"
            )


def _gpu_bytes(part: Part) -> int:
    return part.num_bytes if part.type in GPU_TYPES else 2 * part.num_params


def _by_type(parts: Iterable[Part]) -> tuple[Part, ...]:
    sums: dict[GGMLQuantizationType, Part] = {}
    for type, num_params, num_bytes in parts:
        old = sums.get(type, Part(type, 0, 0))
        sums[type] = Part(type, old.num_params + num_params, old.num_bytes + num_bytes)
    return tuple(sums.values())


def _bytes(parts: Iterable[Part]) -> int:
    return sum(part.num_bytes for part in parts)

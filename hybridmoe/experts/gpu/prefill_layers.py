"""Layers of experts in prefill, and the host memory of their inputs and results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, host_empty
from hybridmoe.experts.gpu.routed_pairs import table_size
from hybridmoe.experts.gpu.weight_stream import HostExperts
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.planning.model_sizes import Part

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["HostMemory", "LayerExperts", "bind_layers"]


@dataclass(slots=True)
class HostMemory:
    """Host memory of a layer's CPU part, and of the GPU's tables."""

    x: Tensor  # (max_tokens, H) f32
    ids: Tensor  # (max_tokens, k) int32
    weights: Tensor  # (max_tokens, k) f32
    out: Tensor  # (max_tokens, H) f32
    tables: Tensor  # (table_size,) int32
    left_out: Tensor  # (E) int32: 0 = the GPU computes the expert, else -1
    returned: Event  # the CPU's result has been copied from this memory

    @classmethod
    def allocate(
        cls, experts: RoutedExperts, max_tokens: int, device: torch.device, free: Event
    ) -> Self:
        """Allocate memory for steps of `max_tokens`. free: an event that has passed."""

        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return host_empty(shape, dtype, device)

        hidden, top_k, num_experts = experts.hidden, experts.top_k, experts.num_experts
        return cls(
            x=empty(torch.float32, max_tokens, hidden),
            ids=empty(torch.int32, max_tokens, top_k),
            weights=empty(torch.float32, max_tokens, top_k),
            out=empty(torch.float32, max_tokens, hidden),
            tables=empty(torch.int32, table_size(max_tokens, top_k, num_experts)),
            left_out=torch.empty(num_experts, dtype=torch.int32),
            returned=free,
        )


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """Experts of one layer, and the CPU's call."""

    number: int
    index: int
    host: HostExperts | None  # None: the CPU computes the layer
    parts: tuple[Part, ...]  # of one expert
    call: _C.HostExpertCall


def bind_layers(
    experts: RoutedExperts, layouts: "Sequence[SlotLayout | None]", memory: HostMemory
) -> dict[int, LayerExperts]:
    """Bind the layers, by number, to host memory that they share. layouts: by layer index."""
    layers = {}
    for index, (number, layout) in enumerate(zip(experts.numbers, layouts, strict=True)):
        weights = experts.by_index[index]
        host = None if layout is None else HostExperts(weights, layout)
        layers[number] = LayerExperts(number, index, host, weights.parts, _call(memory, weights))
    return layers


def _call(memory: HostMemory, experts: ExpertWeights) -> _C.HostExpertCall:
    max_tokens, top_k = memory.ids.shape
    gate, up, down = (w.handle for w in experts)
    return _C.HostExpertCall(
        memory.x.data_ptr(),
        memory.ids.data_ptr(),
        memory.weights.data_ptr(),
        memory.out.data_ptr(),
        max_tokens,
        top_k,
        gate,
        up,
        down,
        memory.left_out.data_ptr(),
    )

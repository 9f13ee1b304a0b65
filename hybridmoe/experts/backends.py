"""Executors of routed experts: the one seam between the network and where its experts live."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from hybridmoe.kernels.ops import QuantMatrix, expert_ffn

__all__ = ["CpuExperts", "ExpertBackend", "ExpertWeights"]


class ExpertWeights(NamedTuple):
    """One layer's routed experts, in their file's block format."""

    gate: QuantMatrix  # (E, I, H)
    up: QuantMatrix  # (E, I, H)
    down: QuantMatrix  # (E, H, I)


class ExpertBackend(Protocol):
    """Computes a layer's routed experts, wherever they are."""

    def forward(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs.

        Shapes: x (T, H) f32 · ids (T, K) int32, -1 = skip · weights (T, K) f32 -> (T, H) f32.
        """
        ...


class CpuExperts:
    """Every expert in RAM (or paged in from the mapped file), executed by the native kernels."""

    def __init__(self, layers: Mapping[int, ExpertWeights]) -> None:
        self._layers = layers

    def forward(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        experts = self._layers[layer]
        return expert_ffn(x, ids, weights, experts.gate, experts.up, experts.down)

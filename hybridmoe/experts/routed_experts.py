"""Routed experts of a model: quantized weights and shapes, by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hybridmoe.experts.policy import CacheShape
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.planning.model_sizes import Part

__all__ = ["ExpertWeights", "RoutedExperts"]


class ExpertWeights(NamedTuple):
    """One layer's routed experts, in their file's block format."""

    gate: QuantMatrix  # (E, I, H)
    up: QuantMatrix  # (E, I, H)
    down: QuantMatrix  # (E, H, I)

    @property
    def matrix_bytes(self) -> tuple[int, int, int]:
        """Bytes of one expert's gate, up and down."""
        gate, up, down = (w.matrix_bytes for w in self)
        return gate, up, down

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return sum(self.matrix_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all experts."""
        return sum(w.num_bytes for w in self)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Addresses of their memory, first and end; gate and up may share one."""
        found: list[tuple[int, int]] = []
        for w in self:
            start, end = w.data.ctypes.data, w.data.ctypes.data + w.data.nbytes
            if found and found[-1][0] <= start < found[-1][1]:
                start, _ = found.pop()
            found.append((start, end))
        return found

    @property
    def parts(self) -> tuple[Part, ...]:
        """One expert's gate, up and down for the cost model."""
        return tuple(Part(w.type, w.rows * w.cols, w.matrix_bytes, w.rows) for w in self)


@dataclass(frozen=True, eq=False)
class RoutedExperts:
    """All routed experts of a model. Every layer has E experts of the same shape; types may differ.

    A layer's number is its place in the model, its index the place among those with experts. Caches
    know an expert by its key, `index * num_experts + expert`.
    """

    layers: Mapping[int, ExpertWeights]  # by layer number, ascending; empty = a dense model
    top_k: int
    first: int = 0  # expert of the file that is number 0 here

    @cached_property
    def by_index(self) -> tuple[ExpertWeights, ...]:
        """Weights by layer index."""
        return tuple(self.layers.values())

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Layer numbers by layer index."""
        return tuple(self.layers)

    @cached_property
    def index_of(self) -> Mapping[int, int]:
        """Layer indices by layer number."""
        return {number: index for index, number in enumerate(self.layers)}

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_experts(self) -> int:
        return self.by_index[0].gate.batch if self.layers else 0

    @property
    def hidden(self) -> int:
        return self.by_index[0].gate.cols if self.layers else 0

    @property
    def inter(self) -> int:
        return self.by_index[0].gate.rows if self.layers else 0

    def of_layers(self, numbers: range) -> "RoutedExperts":
        """Return the experts of some layers, which keep their numbers."""
        chosen = {number: w for number, w in self.layers.items() if number in numbers}
        return RoutedExperts(chosen, self.top_k, self.first)

    def of_experts(self, experts: range) -> "RoutedExperts":
        """Return some of each layer's experts, numbered from 0."""
        start, end = experts.start, experts.stop
        layers = {
            number: ExpertWeights(*(matrix.slice(start, end) for matrix in weights))
            for number, weights in self.layers.items()
        }
        return RoutedExperts(layers, min(self.top_k, len(experts)), self.first + start)

    def cache_shape(self, num_slots: int) -> CacheShape:
        """Sizes of a cache that holds `num_slots` of these experts."""
        return CacheShape(self.num_layers, self.num_experts, num_slots, self.top_k)

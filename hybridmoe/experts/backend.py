"""Executors of routed experts: the one seam between the network and where its experts live."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from hybridmoe.device.pending import Pending, Ready
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.kernels.ops import QuantMatrix, expert_ffn

__all__ = ["CpuExperts", "ExpertBackend", "ExpertWeights"]


class ExpertWeights(NamedTuple):
    """One layer's routed experts, in their file's block format."""

    gate: QuantMatrix  # (E, I, H)
    up: QuantMatrix  # (E, I, H)
    down: QuantMatrix  # (E, H, I)


class ExpertBackend(Protocol):
    """Computes a layer's routed experts, wherever they are."""

    @property
    def is_capturable(self) -> bool:
        """Whether `submit` only queues work for a card, so that a graph can repeat it."""
        ...

    @property
    def wants_guesses(self) -> bool:
        """Whether `expect` is of use."""
        ...

    def begin_step(self, num_tokens: int) -> None:
        """All layers' turns follow, for so many tokens; a step that failed before is forgotten."""
        ...

    def end_step(self) -> None:
        """All layers had their turns. Errors: what went wrong in one and could not be said then."""
        ...

    def expect(self, layer: int, ids: Tensor) -> None:
        """Hear a guess about the ids (T, K) that `layer` will get soon, best first in each row."""
        ...

    def stats(self) -> ExpertStats | None:
        """What a cache of experts has done; None where there is none. From any thread."""
        ...

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Begin the weighted sum of the chosen experts' outputs.

        Shapes: x (T, H) f32 · ids (T, K) int32, -1 = skip · weights (T, K) f32 -> (T, H) f32, by
        `Pending.result`.
        """
        ...

    def close(self) -> None:
        """End what runs beside. Any number of times."""
        ...


class CpuExperts:
    """Every expert in RAM (or paged in from the mapped file), executed by the native kernels."""

    is_capturable = False
    wants_guesses = False

    def __init__(self, layers: Mapping[int, ExpertWeights]) -> None:
        self._layers = layers

    def begin_step(self, num_tokens: int) -> None:
        """Nothing to do."""

    def end_step(self) -> None:
        """Nothing to do."""

    def expect(self, layer: int, ids: Tensor) -> None:
        """Nothing to do: every expert is there."""

    def stats(self) -> ExpertStats | None:
        return None

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """As the protocol's; computed at once."""
        experts = self._layers[layer]
        return Ready(expert_ffn(x, ids, weights, experts.gate, experts.up, experts.down))

    def close(self) -> None:
        """Nothing to do."""

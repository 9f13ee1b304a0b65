"""An executor that writes down which experts each step asks for, and lets another one compute."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hybridmoe.experts.backends import ExpertBackend
from hybridmoe.experts.counters import ExpertStats
from hybridmoe.experts.trace import TraceWriter

__all__ = ["RoutingRecorder"]


class RoutingRecorder:
    """One thread's. Without a writer, whoever runs the steps takes what they chose."""

    def __init__(
        self, inner: ExpertBackend, layers: Iterable[int], writer: TraceWriter | None = None
    ) -> None:
        """layers: numbers of the expert layers, in order."""
        self._inner = inner
        self._layers = list(layers)
        self._writer = writer
        self._chosen: dict[int, tuple[NDArray[np.int16], NDArray[np.float16]]] = {}

    @property
    def wants_guesses(self) -> bool:
        return self._inner.wants_guesses

    def expect(self, layer: int, ids: Tensor) -> None:
        self._inner.expect(layer, ids)

    def stats(self) -> ExpertStats | None:
        return self._inner.stats()

    def forward(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        self._chosen[layer] = (ids.numpy().astype(np.int16), weights.numpy().astype(np.float16))
        return self._inner.forward(layer, x, ids, weights)

    def take(self) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
        """Ids and weights (T, L, K) of the step that has just run."""
        chosen = [self._chosen[layer] for layer in self._layers]
        self._chosen.clear()
        return np.stack([ids for ids, _ in chosen], 1), np.stack([w for _, w in chosen], 1)

    def write(self, conversations: ArrayLike, phases: ArrayLike) -> None:
        """Write the step that has just run: a number and an index into PHASES for each token."""
        ids, weights = self.take()
        if self._writer is not None:
            self._writer.add_step(ids, weights, conversations, phases)

    def close(self) -> None:
        """End the trace. Any number of times. Errors: ConfigError where it could not be written."""
        if self._writer is not None:
            self._writer.close()

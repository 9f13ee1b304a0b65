"""Expert backends: the seam between the network and the memory that its routed experts are in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.pending import Pending, Ready
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.experts.stats import TIERS, ExpertStats
from hybridmoe.kernels.ops import expert_ffn

__all__ = ["CpuExperts", "ExpertBackend", "HostCallTime"]


class HostCallTime(NamedTuple):
    """Begin and end of a layer's expert kernels on the CPU, in seconds of `time.monotonic`."""

    layer: int
    begin_s: float
    end_s: float


class ExpertBackend(ABC):
    """Computes the routed experts of a model. Not thread-safe, except `stats`.

    A step is `begin_step`, `submit` for every layer in order, `end_step`; or, if a graph repeats
    the submissions, `begin_step`, `replayed`, `end_step`. The defaults are those of a backend
    without cache, streams or threads.
    """

    is_capturable = False  # `submit` only queues GPU work, so that a CUDA graph can replay it

    @property
    def wants_prefetch_hints(self) -> bool:
        """True if `prefetch` has an effect."""
        return False

    @property
    def outage(self) -> str | None:
        """Line on what computes some experts and is away for now; None if nothing is."""
        return None

    def ready(self, wait_s: float) -> None:
        """Learn that all weights are in memory; get ready for prompts, for up to `wait_s`."""
        return

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask this while a step waits for a disk that hangs; if True, raise StalledReadError."""
        return

    def begin_step(self, num_tokens: int) -> None:
        """Start a step of `num_tokens`. A step that failed before it ended is discarded."""
        return

    def weights_in_memory(self, layer: int) -> ExpertWeights | None:
        """Weights of a layer's experts, if all are in memory and may be used without `submit`.

        Then a step may also do without `begin_step` and `end_step`.
        """
        return None

    @abstractmethod
    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Start the weighted sum (T, H) f32 of the chosen experts' outputs.

        Shapes: x (T, H) f32 · ids (T, K) int32, -1 = skip · weights (T, K) f32.
        """

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Take a hint: `layer` will soon get about these ids (T, K), likeliest first in a row."""
        return

    def replayed(self, layers: range) -> None:
        """Do the host's part of a graph that has started to repeat these layers' submissions."""
        return

    def trial(self) -> AbstractContextManager[None]:
        """Context in which a graph is captured: of what is submitted, only what it repeats counts.

        Steps that are run to prepare the capture have no result.
        """
        return nullcontext()

    def end_step(self) -> None:
        """Finish a step. Errors: the first one that `submit` could not raise."""
        return

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Find what served experts (T, layers, K) of the last step: indices into TIERS.

        An expert that no cache keeps track of is RAM's.
        """
        return np.full(ids.shape, TIERS.index("RAM"), np.uint8)

    def stats(self) -> ExpertStats | None:
        """Counters of the expert cache; None without one. Thread-safe."""
        return None

    def host_call_times(self) -> list[HostCallTime]:
        """Times of the last step's calls that a GPU stream made on the CPU, for profiles."""
        return []

    def close(self) -> None:
        """Stop threads and transfers. Idempotent."""
        return


class CpuExperts(ExpertBackend):
    """All experts in RAM, or paged in from the mapped file; computed by the native kernels."""

    def __init__(self, experts: RoutedExperts) -> None:
        self._layers = experts.layers

    def weights_in_memory(self, layer: int) -> ExpertWeights | None:
        """All of them; see `ExpertBackend.weights_in_memory`."""
        return self._layers[layer]

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Compute at once; see `ExpertBackend.submit`."""
        gate, up, down = self._layers[layer]
        return Ready(expert_ffn(x, ids, weights, gate, up, down))

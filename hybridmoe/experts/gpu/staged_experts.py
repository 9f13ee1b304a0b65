"""Experts over several GPUs: each layer's beside its dense weights, in a cache of that GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from itertools import accumulate
from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.interface import Device
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend, HostCallTime
from hybridmoe.experts.gpu.expert_cache import GpuExpertCache
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.experts.stats import ExpertStats

__all__ = ["StageExperts", "StagedCache", "StagedExperts"]


class StageExperts(NamedTuple):
    """Backend of the experts of one GPU's layers."""

    backend: ExpertBackend
    device: Device
    layers: Sequence[int]  # numbers of those with experts


class StagedExperts(ExpertBackend):
    """Backends of several GPUs. The layer's is active in `submit` and `replayed`."""

    def __init__(self, stages: Sequence[StageExperts]) -> None:
        self._stages = stages
        self._by_layer = {number: s.backend for s in stages for number in s.layers}
        self.is_capturable = all(stage.backend.is_capturable for stage in stages)

    @property
    def wants_prefetch_hints(self) -> bool:
        return any(stage.backend.wants_prefetch_hints for stage in self._stages)

    def ready(self, wait_s: float) -> None:
        for stage in self._stages:
            with stage.device.active():
                stage.backend.ready(wait_s / len(self._stages))

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        for stage in self._stages:
            stage.backend.abandon_when(is_unwanted)

    def begin_step(self, num_tokens: int) -> None:
        for stage in self._stages:
            with stage.device.active():
                stage.backend.begin_step(num_tokens)

    def weights_in_memory(self, layer: int) -> ExpertWeights | None:
        return self._by_layer[layer].weights_in_memory(layer)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        return self._by_layer[layer].submit(layer, x, ids, weights)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self._by_layer[layer].prefetch(layer, ids)

    def replayed(self, layers: range) -> None:
        for stage in self._stages:
            if any(number in layers for number in stage.layers):
                stage.backend.replayed(layers)

    @contextmanager
    def trial(self) -> Iterator[None]:
        with ExitStack() as stack:
            for stage in self._stages:
                stack.enter_context(stage.backend.trial())
            yield

    def end_step(self) -> None:
        """See `ExpertBackend`. After an error, the next step discards what the others began."""
        for stage in self._stages:
            with stage.device.active():
                stage.backend.end_step()

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        ends = accumulate(len(stage.layers) for stage in self._stages)
        parts = [
            stage.backend.tiers(ids[:, end - len(stage.layers) : end])
            for stage, end in zip(self._stages, ends, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def stats(self) -> ExpertStats | None:
        """Sum up the caches of all GPUs."""
        found = [stats for s in self._stages if (stats := s.backend.stats()) is not None]
        return reduce(add, found) if found else None

    def host_call_times(self) -> list[HostCallTime]:
        return [times for stage in self._stages for times in stage.backend.host_call_times()]

    def close(self) -> None:
        for stage in self._stages:
            with stage.device.active():
                stage.backend.close()


class StagedCache:
    """Expert caches of consecutive layers as one, for a profile of hot experts."""

    def __init__(self, caches: Sequence[tuple[GpuExpertCache | None, int]]) -> None:
        """caches: each with the number of experts of its layers; None = none is resident."""
        self._caches = caches

    @property
    def uses(self) -> NDArray[np.int64]:
        """Accesses by key."""
        parts = [np.zeros(size, np.int64) if c is None else c.uses for c, size in self._caches]
        return np.concatenate(parts)

    def resident(self) -> NDArray[np.int64]:
        """List the keys that are resident, ascending."""
        found, first = [np.empty(0, np.int64)], 0
        for cache, size in self._caches:
            if cache is not None:
                found.append(first + cache.resident())
            first += size
        return np.concatenate(found)

"""Experts of several GPUs: every call reaches the GPU of its layer, sums are those of all."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.pending import Pending, Ready
from hybridmoe.experts.backend import ExpertBackend, HostCallTime
from hybridmoe.experts.gpu.staged_experts import StagedCache, StagedExperts, StageExperts
from hybridmoe.experts.stats import ExpertCounters, ExpertStats

X = torch.zeros(1, 1)
IDS = torch.zeros(1, 1, dtype=torch.int32)


class Noted(ExpertBackend):
    """Backend that notes its calls, and the GPU that was active."""

    is_capturable = True

    def __init__(self, gpu: "Gpu", hits: int) -> None:
        self.gpu, self.hits = gpu, hits
        self.calls: list[tuple[str, Any]] = []

    def note(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if name not in ("submit", "prefetch", "replayed"):  # the caller's part
            assert self.gpu.is_active, name

    def ready(self, wait_s: float) -> None:
        self.note("ready", wait_s)

    def begin_step(self, num_tokens: int) -> None:
        self.note("begin", num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        self.note("submit", layer)
        return Ready(x)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self.note("prefetch", layer)

    def replayed(self, layers: range) -> None:
        self.note("replayed", layers)

    def end_step(self) -> None:
        self.note("end")

    def stats(self) -> ExpertStats:
        counters = ExpertCounters(hits=self.hits, late=1)
        return ExpertStats(4, 2, 8, 10 * self.hits, counters, place="VRAM")

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        return (ids + self.hits).astype(np.uint8)

    def host_call_times(self) -> list[HostCallTime]:
        return [HostCallTime(self.hits, 0.0, 1.0)]

    def close(self) -> None:
        self.note("close")


class Gpu:
    """Device that knows whether it is active."""

    is_active = False

    def active(self) -> AbstractContextManager[object]:
        gpu = self

        class Active(nullcontext[None]):
            def __enter__(self) -> None:
                gpu.is_active = True

            def __exit__(self, *error: object) -> None:
                gpu.is_active = False

        return Active()


def test_calls_reach_the_gpu_of_their_layer() -> None:
    one, two = Noted(Gpu(), 3), Noted(Gpu(), 5)
    stages = [StageExperts(b, b.gpu, layers) for b, layers in ((one, [1, 2]), (two, [3]))]  # type: ignore[arg-type]
    experts = StagedExperts(stages)
    assert experts.is_capturable and not experts.wants_prefetch_hints
    experts.ready(1.0)
    experts.begin_step(7)
    for layer in (1, 2, 3):
        experts.submit(layer, X, IDS, X)
    experts.prefetch(3, IDS)
    experts.replayed(range(3, 4))
    experts.end_step()
    experts.close()
    ready, begin, end, close = ("ready", 0.5), ("begin", 7), ("end", None), ("close", None)
    assert one.calls == [ready, begin, ("submit", 1), ("submit", 2), end, close]
    assert two.calls == [
        ready, begin, ("submit", 3), ("prefetch", 3), ("replayed", range(3, 4)), end, close
    ]  # fmt: skip


def test_counters_and_times_are_those_of_all_gpus() -> None:
    stages = [StageExperts(Noted(Gpu(), hits), Gpu(), [hits]) for hits in (3, 5)]  # type: ignore[arg-type]
    experts = StagedExperts(stages)
    stats = experts.stats()
    assert stats is not None and stats.place == "VRAM"
    assert (stats.num_slots, stats.num_resident, stats.num_experts) == (8, 4, 16)
    assert (stats.counters.hits, stats.counters.late, stats.buffer_bytes) == (8, 2, 50)
    assert [time.layer for time in experts.host_call_times()] == [3, 5]


def test_tiers_are_those_of_the_gpu_of_their_layer() -> None:
    stages = [
        StageExperts(Noted(Gpu(), hits), Gpu(), layers)  # type: ignore[arg-type]
        for hits, layers in ((10, [1, 2]), (20, [3]))
    ]
    ids = np.arange(12, dtype=np.int16).reshape(2, 3, 2)
    found = StagedExperts(stages).tiers(ids)
    assert found.tolist() == (ids + np.array([10, 10, 20])[:, None]).tolist()


def test_without_a_cache_there_are_no_counters() -> None:
    backend = Noted(Gpu(), 1)
    backend.stats = lambda: None  # type: ignore[method-assign, assignment, return-value]
    assert StagedExperts([StageExperts(backend, Gpu(), [1])]).stats() is None  # type: ignore[arg-type]


def test_a_profile_counts_keys_over_all_gpus() -> None:
    first = SimpleNamespace(uses=np.array([1, 0, 2, 0]), resident=lambda: np.array([0, 2]))
    last = SimpleNamespace(uses=np.array([0, 5]), resident=lambda: np.array([1]))
    cache = StagedCache([(first, 4), (None, 3), (last, 2)])  # type: ignore[list-item]
    assert cache.uses.tolist() == [1, 0, 2, 0, 0, 0, 0, 0, 5]
    assert cache.resident().tolist() == [0, 2, 8]

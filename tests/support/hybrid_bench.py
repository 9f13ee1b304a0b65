"""Hybrid backend of a small model over fake streams, and the bounds of its results."""

import time
from collections.abc import Callable, Iterator, Sequence

import closeness
import numpy as np
import torch
import triton_bounds
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from kernel_device import DEVICE, moved
from random_weights import random_matrix
from torch import Tensor

from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.policy import make_policy
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts

__all__ = ["EXPERTS", "FIRST", "HIDDEN", "KINDS", "ROUTED", "TOP_K", "HybridBench", "Inputs"]
__all__ += ["MakeBench", "make_experts", "make_inputs", "num_used", "open_benches"]

EXPERTS, HIDDEN, INTER, TOP_K = 6, 64, 32, 3
KINDS = [(T.Q4_0, T.Q8_0, T.Q4_0), (T.BF16, T.F16, T.BF16), (T.Q8_0, T.Q4_0, T.Q8_0)]
FIRST = 1  # number of the first layer with experts

Inputs = tuple[Tensor, Tensor, Tensor]  # x, ids, weights


def make_experts(kinds: Sequence[tuple[T, T, T]] = KINDS) -> RoutedExperts:
    layers = {
        number: ExpertWeights(
            random_matrix(gate, EXPERTS, INTER, HIDDEN, seed=3 * number),
            random_matrix(up, EXPERTS, INTER, HIDDEN, seed=3 * number + 1),
            random_matrix(down, EXPERTS, HIDDEN, INTER, seed=3 * number + 2),
        )
        for number, (gate, up, down) in enumerate(kinds, FIRST)
    }
    return RoutedExperts(layers, TOP_K)


ROUTED = make_experts()


def make_inputs(tokens: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(100 * tokens + seed)
    x = 0.02 * torch.randn((tokens, HIDDEN), generator=generator)
    scores = torch.rand((tokens, EXPERTS), generator=generator)
    ids = scores.argsort(1)[:, :TOP_K].int().contiguous()
    ids[scores[:, :TOP_K] < 0.1] = -1
    return x, ids, torch.rand((tokens, TOP_K), generator=generator)


def num_used(inputs: Sequence[Inputs]) -> int:
    """Count the distinct experts of each layer's input."""
    return sum(len(set(ids.flatten().tolist()) - {-1}) for _, ids, _ in inputs)


class HybridBench:
    """A hybrid backend with some experts in VRAM slots."""

    def __init__(
        self,
        resident: Sequence[int] = (),
        *,
        is_lazy: bool = False,
        num_slots: int | None = None,
        policy: str = "lru",
        host: FakeStream | None = None,
    ) -> None:
        self.main = FakeStream(is_lazy=False, is_current=True)
        self.host = host or FakeStream(is_lazy=is_lazy)
        self.copy = FakeStream(is_lazy=is_lazy)
        self.slots: SlotPool | None = None
        count = len(resident) if num_slots is None else num_slots
        if count:
            self.slots = SlotPool(
                ROUTED,
                count,
                self.main,
                self.copy,
                DEVICE,
                uploads_per_step=ROUTED.num_layers * EXPERTS,
                policy=make_policy(policy, ROUTED.cache_shape(count)),
            )
            self.slots.slots.fill_(0xFF)
            self.slots.cache.warm(np.array(resident, np.int64))
            self.finish_uploads()
            assert self.slots.cache.resident().tolist() == sorted(resident)
        self.experts = HybridExperts(ROUTED, self.main, self.host, DEVICE, slots=self.slots)

    def finish_uploads(self) -> None:
        """Wait for all uploads, and enter them in the table."""
        assert self.slots is not None
        cache = self.slots.cache
        cache.begin_step()
        while cache.num_pending:
            self.copy.synchronize()
            time.sleep(0.001)
            cache.begin_step()

    def is_resident(self, layer: int, expert: int) -> bool:
        return self.slots is not None and bool(self.slots.slot_of(layer)[expert] >= 0)

    def step(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """Run a step, one input for each layer, and check its results."""
        self.experts.begin_step(len(inputs[0][0]))
        results = []
        for layer, (x, ids, weights) in zip(ROUTED.numbers, inputs, strict=True):
            pending = self.experts.submit(layer, *moved(x, ids, weights))
            results.append(pending.result().cpu().clone())
        self.check(inputs, results)
        self.experts.end_step()
        return results

    def check(self, inputs: Sequence[Inputs], results: Sequence[Tensor]) -> None:
        for layer, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
            want, bound = self.expected(layer, *given)
            closeness.assert_close(got, want, bound, f"layer {layer}")

    def expected(
        self, layer: int, x: Tensor, ids: Tensor, weights: Tensor, *, all_cpu: bool = False
    ) -> tuple[closeness.Array, closeness.Array]:
        """Compute the exact sum of the CPU's and the GPU's experts, and the bound of its error.

        The sum of two parts of up to k terms has two roundings more than the CPU's sum of k.
        """
        exact, want = x.double().numpy(), np.zeros(x.shape)
        bound = np.full(x.shape, 2.0**-140)
        for t, j in np.argwhere(ids.numpy() >= 0):
            expert, weight = int(ids[t, j]), float(weights[t, j])
            if self.is_resident(layer, expert) and not all_cpu and len(x) <= 16:
                y, y_bound = triton_bounds.one_expert(ROUTED.layers[layer], expert, exact[t], TOP_K)
            else:
                ys, bounds = closeness.one_expert(ROUTED.layers[layer], expert, exact[t : t + 1])
                y, y_bound = ys[0], bounds[0]
            want[t] += weight * y
            bound[t] += weight * (y_bound + (TOP_K + 4) * triton_bounds.U * np.abs(y))
        return want, bound

    def close(self) -> None:
        self.experts.close()


MakeBench = Callable[..., HybridBench]


def open_benches() -> Iterator[MakeBench]:
    """Make benches that are closed at the end; for `pytest.fixture`."""
    made: list[HybridBench] = []

    def make(*args: object, **kwargs: object) -> HybridBench:
        made.append(HybridBench(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bench in made:
        bench.close()

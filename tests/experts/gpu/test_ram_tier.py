"""Hybrid experts over VRAM, RAM and a file: results, and one place for each expert."""

from collections.abc import Sequence
from pathlib import Path

import closeness
import numpy as np
import pytest
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as Type
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

import triton_bounds
from kernel_device import DEVICE, moved
from ram_tier import EXPERTS, TOP_K, inputs
from ram_tier import RamTier as NativeTier

from hybridmoe.experts.gpu.host_registration import host_view
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.ram_tier import RamTier
from hybridmoe.experts.gpu.slot_downloader import Download, SlotDownloader
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.policy import make_policy
from hybridmoe.experts.routed_experts import RoutedExperts

pytestmark = pytest.mark.usefixtures("exact_kernels")  # the bounds of `closeness` are theirs

Inputs = tuple[Tensor, Tensor, Tensor]  # x, ids, weights
TYPES = [Type.Q8_0, Type.Q4_0, Type.Q8_0]
FIRST = 1  # number of the first layer with experts


class Bench:
    """A hybrid backend over a native tier and fake streams."""

    def __init__(
        self, path: Path, num_vram: int, num_ram: Sequence[int], *, is_lazy: bool, policy: str
    ) -> None:
        self.native_tier = NativeTier(path, TYPES, num_ram, num_leaving=3)
        self.native = self.native_tier.native
        self.close_reads = self.native_tier.close
        self.routed = RoutedExperts(dict(enumerate(self.native_tier.layers, FIRST)), TOP_K)
        self.main = FakeStream(is_lazy=False, is_current=True)
        self.copy = FakeStream(is_lazy=is_lazy)
        ram = RamTier(self, self.routed)
        self.slots = SlotPool(
            self.routed,
            num_vram,
            self.main,
            self.copy,
            DEVICE,
            uploads_per_step=8,
            policy=make_policy(policy, self.routed.cache_shape(num_vram)),
            ram=ram,
        )
        self.slots.slots.fill_(0xFF)
        host = FakeStream(is_lazy=is_lazy)
        self.experts = HybridExperts(
            self.routed, self.main, host, DEVICE, slots=self.slots, ram=ram
        )

    def step(self, inputs: Sequence[Inputs]) -> None:
        """Run a step, one input for each layer, and check results and places."""
        self.experts.begin_step(len(inputs[0][0]))
        for layer, given in zip(self.routed.numbers, inputs, strict=True):
            got = self.experts.submit(layer, *moved(*given)).result().cpu()
            want, bound = self.expected(layer, *given)
            closeness.assert_close(got, want, bound, f"layer {layer}")
        self.experts.end_step()
        self.native.check()
        resident = self.native.resident()
        assert not set(self.slots.cache.kept().tolist()) & set(resident)
        for key in resident:
            self.check_bytes(key)

    def check_bytes(self, key: int) -> None:
        """Check that an expert's bytes, if they are in RAM, are those of the file."""
        addresses = self.native.addresses(key)
        if addresses is None:
            return
        index, expert = divmod(key, EXPERTS)
        for w, address in zip(self.routed.by_index[index], addresses, strict=True):
            want = w.slice(expert, expert + 1).data
            assert np.array_equal(host_view(address, len(want)).numpy(), want)

    def expected(
        self, layer: int, x: Tensor, ids: Tensor, weights: Tensor
    ) -> tuple[closeness.Array, closeness.Array]:
        exact, want = x.double().numpy(), np.zeros(x.shape)
        bound = np.full(x.shape, 2.0**-140)
        for t, j in np.argwhere(ids.numpy() >= 0):
            expert, weight = int(ids[t, j]), float(weights[t, j])
            own = self.routed.layers[layer]
            if self.slots.slot_of(layer)[expert] >= 0:
                y, y_bound = triton_bounds.one_expert(own, expert, exact[t], TOP_K)
            else:
                ys, bounds = closeness.one_expert(own, expert, exact[t : t + 1])
                y, y_bound = ys[0], bounds[0]
            want[t] += weight * y
            bound[t] += weight * (y_bound + (TOP_K + 4) * triton_bounds.U * np.abs(y))
        return want, bound

    def close(self) -> None:
        self.close_reads()


@pytest.mark.parametrize(
    ("num_vram", "num_ram", "is_lazy"), [(8, (6, 2), False), (8, (6, 2), True), (12, (0, 0), False)]
)
def test_every_split_over_the_tiers_is_within_the_bound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_vram: int,
    num_ram: tuple[int, int],
    is_lazy: bool,
) -> None:
    downloads: list[Download | None] = []
    begin = SlotDownloader.begin

    def noted(self: SlotDownloader, layer_index: int, slot: int) -> Download | None:
        downloads.append(begin(self, layer_index, slot))
        return downloads[-1]

    monkeypatch.setattr(SlotDownloader, "begin", noted)
    rng = np.random.default_rng(num_vram)
    bench = Bench(tmp_path / "experts", num_vram, num_ram, is_lazy=is_lazy, policy="lru")
    for _ in range(6):
        tokens = int(rng.integers(1, 3))
        bench.step([inputs(rng, tokens) for _ in TYPES])
        bench.copy.synchronize()
    stats = bench.slots.cache.stats()
    assert stats.counters.hits > stats.counters.late > 0
    counters = bench.native.counters()
    has_ram = sum(num_ram) > 0
    assert (counters["promoted"] > 0) == (counters["returned"] > 0) == has_ram
    assert any(downloads) == has_ram
    bench.experts.close()

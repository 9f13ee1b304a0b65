"""Prefill over VRAM slots, a RAM tier and a file, on fake streams: results, reads, buffers."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import closeness
import numpy as np
import pytest
import torch
from fake_registrar import FakeRegistrar
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as Type
from read_faults import add_faults
from small_model import SMALL
from tiny_gguf import write_tiny
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

from kernel_device import DEVICE, moved
from triton_bounds import U, expert_of_rows

from hybridmoe import _C
from hybridmoe.config import ModelConfig
from hybridmoe.errors import DiskError
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.gpu.host_registration import HostRegistration
from hybridmoe.experts.gpu.prefill_experts import ResidentExperts
from hybridmoe.experts.gpu.tier_prefill import TierPrefill
from hybridmoe.experts.gpu.weight_stream import HostExperts, WeightStream
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.disk import direct_buffer_bytes
from hybridmoe.kernels.triton.expert_ffn import pack_slot
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.buffer_pools import BufferPool
from hybridmoe.planning.disk_cache_plan import DiskCachePlan

LAYERS, EXPERTS, TOP_K, TOKENS = 2, 8, 2, 20
BUFFERS, STREAMED, SLOTS = 4, 3, 2  # on the GPU, in groups of two; of RAM
IN_VRAM = {(0, 1): 1, (0, 6): 0, (1, 3): 2}  # (layer index, expert) -> slot


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiers") / "m.gguf"
    types = {"ffn_gate_exps": Type.Q8_0, "ffn_up_exps": Type.Q4_0, "ffn_down_exps": Type.Q8_0}
    sizes = {**SMALL, "experts": EXPERTS, "expert_width": 64, "layers": 1 + LAYERS}
    write_tiny(path, type={"default": Type.F32} | types, **sizes)
    return path


class Bench:
    """The executor, and what it runs on."""

    def __init__(self, path: Path, *, is_lazy: bool, is_registered: bool, in_vram: bool) -> None:
        self.file = GGUFFile.open(path)
        config = ModelConfig.from_metadata(self.file.metadata)
        self.routed: RoutedExperts = routed_experts(Weights(self.file), config)
        assert (self.routed.num_layers, self.routed.num_experts) == (LAYERS, EXPERTS)
        layout = ExpertLayout(self.file, self.routed)
        gate, up, down = map(direct_buffer_bytes, self.routed.by_index[0].matrix_bytes)
        part_bytes = (gate, up, down)
        pool = BufferPool(part_bytes, LAYERS, SLOTS, STREAMED, 0)
        plan = DiskCachePlan((pool,), (0,) * LAYERS, (part_bytes,) * LAYERS, EXPERTS, TOP_K, 0)
        reader = FileReader(self.file.parts, self.file.states)
        self.ram = CachedExperts(self.routed, layout, reader, plan)
        registration = None
        if is_registered:
            spans = [(start, start + size) for start, size in self.ram.native.pools()]
            registration = HostRegistration(spans, FakeRegistrar(), most_bytes=1 << 30)
            registration.begin(60.0)
        main = FakeStream(is_lazy=is_lazy, is_current=True)
        layouts = [layout_of(*weights) for weights in self.routed.by_index]
        size = max(layout.slot_bytes for layout in layouts if layout)
        weights = WeightStream(
            BUFFERS,
            size,
            DEVICE,
            main,
            FakeStream(is_lazy=is_lazy),
            _C.CopyThreads(1),
            registration,
        )
        self.prefill = TierPrefill(
            self.ram,
            self.routed,
            layouts,
            add_experts,
            main,
            weights,
            DEVICE,
            max_tokens=TOKENS,
            resident=self._in_slots() if in_vram else None,
        )

    def _in_slots(self) -> ResidentExperts:
        layouts = [layout_of(*weights) for weights in self.routed.by_index]
        size = max(layout.packed.slot_bytes for layout in layouts if layout)
        slots = torch.full((3, size), 0xFF, dtype=torch.uint8, device=DEVICE)
        table = np.full((LAYERS, EXPERTS + 1), -1, np.int32)
        for (index, expert), slot in IN_VRAM.items():
            table[index, expert] = slot
            self.ram.native.discard(index * EXPERTS + expert)
            layout = layouts[index]
            assert layout is not None
            streamed = torch.empty(layout.slot_bytes, dtype=torch.uint8, device=DEVICE)
            for offset, data in HostExperts(self.routed.by_index[index], layout).parts(expert):
                streamed[offset : offset + data.nbytes] = data
            slots[slot, : layout.packed.slot_bytes] = pack_slot(streamed, layout)
        return ResidentExperts(slots, table)

    def step(self, seed: int, tokens: int = TOKENS) -> list[Tensor]:
        """Run a step, and check each layer's result."""
        self.prefill.begin_step(tokens)
        results = []
        for layer in self.routed.numbers:
            x, ids, weights = inputs(self.routed.hidden, seed + layer, tokens)
            got = self.prefill.submit(layer, *moved(x, ids, weights)).result().cpu()
            self.check(layer, x, ids, weights, got)
            results.append(got)
        self.prefill.check()
        self.ram.native.check()
        assert self.ram.buffers_in_use == self.ram.native.num_resident, "a buffer has leaked"
        return results

    def check(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor, got: Tensor) -> None:
        want = np.zeros(x.shape)
        bound, size = np.full(x.shape, 2.0**-140), np.zeros(x.shape)
        for expert in {int(e) for e in ids.unique() if e >= 0}:
            rows, place = np.nonzero(ids.numpy() == expert)
            factor = weights.double().numpy()[rows, place][:, None]
            y, error = expert_of_rows(self.routed.layers[layer], expert, x.numpy()[rows])
            want[rows] += factor * y
            bound[rows] += factor * error
            size[rows] += factor * (np.abs(y) + error)
        closeness.assert_close(got, want, bound + (EXPERTS + 2) * U * size, f"layer {layer}")

    def close(self) -> None:
        self.prefill.close()
        self.ram.close()
        self.file.close()


def inputs(hidden: int, seed: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make states, distinct experts for each token, some -1, and weights."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn((tokens, hidden), generator=generator)
    ids = torch.multinomial(torch.ones(tokens, EXPERTS), TOP_K, generator=generator).int()
    ids[torch.rand(ids.shape, generator=generator) < 0.1] = -1
    return x, ids, torch.rand(ids.shape, generator=generator)


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def run(**options: Any) -> Bench:
        options = {"is_lazy": True, "is_registered": True, "in_vram": True} | options
        made.append(Bench(path, **options))
        return made[-1]

    yield run
    for bench in made:
        bench.close()


@pytest.mark.parametrize(
    ("is_lazy", "is_registered", "in_vram"),
    [(True, True, True), (True, False, True), (False, True, False)],
)
def test_steps_are_within_the_bound_and_lose_no_buffer(
    make: Callable[..., Bench], is_lazy: bool, is_registered: bool, in_vram: bool
) -> None:
    bench = make(is_lazy=is_lazy, is_registered=is_registered, in_vram=in_vram)
    bench.step(1)
    bench.step(2, tokens=17)
    tally, size = bench.prefill.tally, bench.routed.by_index[0].expert_bytes
    assert (tally.resident > 0) == in_vram
    assert tally.streamed_bytes == tally.streamed * size
    stats = bench.ram.stats().counters
    assert stats.prefetched >= stats.prefetched_used > 0
    # What was admitted is read once; all other experts once a step; VRAM's never.
    in_vain = stats.prefetched - stats.prefetched_used
    assert in_vain <= 1  # one that no token chose
    assert stats.bytes_read == (tally.streamed - stats.hits + in_vain) * size


def test_bits_depend_neither_on_timing_nor_on_what_is_in_ram(make: Callable[..., Bench]) -> None:
    first, again = make(), make(is_lazy=False, is_registered=False)
    again.ram.load_hot(np.array([3, 10]), lambda num_bytes: None)
    assert all(map(torch.equal, first.step(5), again.step(5)))


def test_the_end_of_a_step_waits_for_what_is_still_copied(make: Callable[..., Bench]) -> None:
    bench, link = make(), FakeStream(is_lazy=True)
    bench.ram.request(5)
    bench.ram.native.drain()
    link.copy(torch.zeros(1), torch.ones(1))
    bench.prefill._copies.append((5, link.record()))
    assert bench.ram.buffers_in_use == 1
    bench.prefill.check()
    assert link.is_idle() and bench.ram.buffers_in_use == 0


def test_a_failed_read_ends_the_step_and_the_next_goes_on(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = add_faults(monkeypatch)
    bench = make()
    faults.fail(errno.EIO, 1.0)
    with pytest.raises(DiskError, match="Input/output error"):
        bench.step(1)
    faults.fail(errno.EIO, 0.0)
    bench.step(1)

"""Hybrid experts on fake streams: results of the CPU and the GPU together, and their errors."""

import time
from collections.abc import Sequence

import closeness
import numpy as np
import pytest
import torch
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.stats import TIERS
from hybridmoe.planning.rates import GpuRates, Rates

pytest.importorskip("triton", reason="needs triton")

from hybrid_bench import (
    EXPERTS,
    FIRST,
    KINDS,
    ROUTED,
    MakeBench,
    make_experts,
    make_inputs,
    num_used,
    open_benches,
)  # fmt: skip
from kernel_device import DEVICE, moved

from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.prefill_experts import ResidentExperts, StreamedExperts, Streams
from hybridmoe.experts.gpu.slot_pool import slot_layouts
from hybridmoe.experts.gpu.weight_stream import WeightStream
from hybridmoe.kernels.triton.expert_prefill import add_experts

pytestmark = pytest.mark.usefixtures("exact_kernels")  # the bounds of `closeness` are theirs

bench = pytest.fixture(open_benches)


@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_every_mixture_of_hits_and_misses_is_within_the_bound(
    bench: MakeBench, tokens: int, is_lazy: bool
) -> None:
    random = np.random.default_rng(10 * tokens + is_lazy)
    for share in (0.2, 0.6)[: 1 if tokens == 16 else 2]:
        resident = np.flatnonzero(random.random(ROUTED.num_layers * EXPERTS) < share)
        made = bench(resident.tolist(), is_lazy=is_lazy)
        made.step([make_inputs(tokens, layer) for layer in ROUTED.numbers])


@pytest.mark.parametrize("resident", [(), range(18)], ids=["no", "every"])
@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_one_side_alone(bench: MakeBench, resident: Sequence[int], is_lazy: bool) -> None:
    """Without slots, results equal `CpuExperts` bit for bit."""
    made = bench(resident, is_lazy=is_lazy)
    inputs = [make_inputs(3, layer) for layer in ROUTED.numbers]
    results = made.step(inputs)
    cpu = CpuExperts(ROUTED)
    for layer, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
        assert torch.equal(cpu.submit(layer, *given).result(), got) == (not resident)


def test_a_wrong_slot_is_seen(bench: MakeBench) -> None:
    made = bench([0, 1, 2, 3, 4, 5])
    assert made.slots is not None
    inputs = [make_inputs(2, layer) for layer in ROUTED.numbers]
    made.slots.slots[int(made.slots.slot_of(FIRST)[int(inputs[0][1][0, 0])])] ^= 1
    with pytest.raises(AssertionError, match="out of bounds"):
        made.step(inputs)


@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_a_cache_fills_during_steps(bench: MakeBench, is_lazy: bool) -> None:
    """All steps are within the bound; the GPU alone computes the last."""
    made = bench(num_slots=ROUTED.num_layers * EXPERTS, is_lazy=is_lazy)
    off = bench(is_lazy=is_lazy)
    assert made.slots is not None
    inputs = [make_inputs(1, layer) for layer in ROUTED.numbers]
    for i in range(6):
        on_results, off_results = made.step(inputs), off.step(inputs)
        for layer, given, a, b in zip(ROUTED.numbers, inputs, on_results, off_results, strict=True):
            want, bound = made.expected(layer, *given)
            cpu, cpu_bound = made.expected(layer, *given, all_cpu=True)
            away = bound + cpu_bound + np.abs(want - cpu)
            closeness.assert_close(a, b.double().numpy(), away, f"cache on and off, step {i}")
        made.copy.synchronize()
        if i == 3:
            made.finish_uploads()
    ids = np.stack([ids.numpy() for _, ids, _ in inputs], 1).astype(np.int16)  # (T, L, K)
    found = [{TIERS[tier] for tier in one.experts.tiers(ids)[ids >= 0]} for one in (made, off)]
    assert found == [{"VRAM"}, {"RAM"}]
    chosen = [int((ids >= 0).sum()) for _, ids, _ in inputs]
    assert len(made.slots.cache.resident()) == sum(chosen)
    stats = made.experts.stats()
    assert stats is not None and off.experts.stats() is None
    counters = stats.counters
    assert counters.misses == counters.uploads == sum(chosen) and counters.hits == 5 * sum(chosen)
    assert stats.place == "VRAM" and stats.num_slots == ROUTED.num_layers * EXPERTS


@pytest.mark.parametrize("tokens", [17, 40])
def test_prefill_without_an_executor_is_the_cpus(bench: MakeBench, tokens: int) -> None:
    made = bench([0, 1, 2, 9], is_lazy=True)
    inputs = [make_inputs(tokens, layer) for layer in ROUTED.numbers]
    for _ in range(2):
        results = made.step(inputs)
        cpu = CpuExperts(ROUTED)
        for number, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
            assert torch.equal(cpu.submit(number, *given).result(), got)
        made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


class OneAtATime:
    """A prefill executor that computes in `submit`, and fails its second check."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.begun: list[int] = []
        self.num_checks = self.num_closed = 0
        self._cpu = CpuExperts(ROUTED)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        self.submitted.append(layer)
        return Ready(self._cpu.submit(layer, x.cpu(), ids.cpu(), weights.cpu()).result().to(DEVICE))

    def begin_step(self, num_tokens: int) -> None:
        self.begun.append(num_tokens)

    def ready(self, wait_s: float) -> None:
        raise NotImplementedError

    def check(self) -> None:
        self.num_checks += 1
        if self.num_checks == 2:
            raise HybridMoeError("the link is gone")

    def close(self) -> None:
        self.num_closed += 1


def test_a_prefill_executor_computes_prefill_steps(bench: MakeBench) -> None:
    made, prefill = bench(num_slots=4, is_lazy=True), OneAtATime()
    experts = HybridExperts(ROUTED, made.main, made.host, DEVICE, slots=made.slots, prefill=prefill)
    made.experts = experts
    inputs = [make_inputs(20, layer) for layer in ROUTED.numbers]
    made.step(inputs)
    assert prefill.submitted == list(ROUTED.numbers) and prefill.num_checks == 1
    stats = experts.stats()
    assert stats is not None
    assert stats.counters.misses == num_used(inputs)
    assert stats.counters.uploads == 4, "free slots only"
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])
    assert prefill.num_checks == 1 and len(prefill.submitted) == ROUTED.num_layers
    with pytest.raises(HybridMoeError, match="the link is gone"):
        made.step(inputs)
    experts.begin_step(20)
    bad = torch.full_like(inputs[0][1], EXPERTS)
    prefill.submit = lambda layer, x, ids, weights: Ready(x)  # type: ignore[method-assign]
    experts.submit(FIRST + 1, *moved(inputs[0][0], bad, inputs[0][2]))
    with pytest.raises(HybridMoeError, match=r"experts of blk\.2: chosen are \[6\]"):
        experts.end_step()
    experts.close()
    assert prefill.num_closed == 1


def test_prompts_use_resident_experts_and_stream_the_others(bench: MakeBench) -> None:
    made = bench([0, 1, 8, 9, 16], is_lazy=True)
    slots = made.slots
    assert slots is not None
    gpu = GpuRates(read=1e9, ops=1e12, pcie=1e15, copy=1e15, copy_cpu=0.0, expert_s=0.0)
    layouts, link = slot_layouts(ROUTED), FakeStream(is_lazy=True)
    size = max(layout.slot_bytes for layout in layouts)
    weights = WeightStream(4, size, DEVICE, made.main, link, _C.CopyThreads(1))
    prefill = StreamedExperts(
        ROUTED,
        layouts,
        add_experts,
        Rates("avx512", dram=1e8, ops=1e8, attention_ops=1e8, gpu=gpu),
        Streams(made.main, made.host, link),
        weights,
        DEVICE,
        max_tokens=20,
        resident=ResidentExperts(slots.slots, slots.cache.table.numpy()),
    )
    made.experts = HybridExperts(ROUTED, made.main, made.host, DEVICE, slots=slots, prefill=prefill)
    inputs = [make_inputs(20, layer) for layer in ROUTED.numbers]
    made.experts.begin_step(20)
    for layer, given in zip(ROUTED.numbers, inputs, strict=True):
        got, want = (
            made.experts.submit(layer, *moved(*given)).result().cpu(),
            CpuExperts(ROUTED).submit(layer, *given).result(),
        )
        assert (got - want).norm() < 0.03 * want.norm(), "int8 against bfloat16 activations"
    made.experts.end_step()
    assert prefill.tally.resident == 5 and prefill.tally.streamed > 0
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


def test_an_error_fails_its_step_in_one_line_and_not_the_next(bench: MakeBench) -> None:
    made = bench(is_lazy=True)
    inputs = [make_inputs(2, layer) for layer in ROUTED.numbers]
    bad = inputs[1][1].clone()
    bad[1, 1] = EXPERTS
    made.experts.begin_step(2)
    for layer, (x, ids, weights) in zip(ROUTED.numbers, inputs, strict=True):
        chosen = bad if layer == FIRST + 1 else ids
        made.experts.submit(layer, *moved(x, chosen, weights)).result()
    with pytest.raises(HybridMoeError, match=r"blk\.2 on the CPU: expert_ffn: expert id 6") as said:
        made.experts.end_step()
    assert "\n" not in str(said.value)
    made.step(inputs)


def test_a_step_that_failed_is_discarded(bench: MakeBench) -> None:
    made = bench([1, 8], is_lazy=True)
    x, ids, weights = make_inputs(2)
    made.experts.begin_step(2)
    made.experts.submit(FIRST + 1, *moved(x, ids, weights))  # its result is never taken
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


def test_an_error_of_a_failed_step_is_not_the_next_ones() -> None:
    host = FakeStream(is_lazy=True)
    experts = HybridExperts(ROUTED, FakeStream(is_lazy=False, is_current=True), host, DEVICE)
    x, ids, weights = make_inputs(2)
    experts.begin_step(2)
    experts.submit(FIRST, *moved(x, torch.full_like(ids, EXPERTS), weights))
    experts.begin_step(2)
    got = experts.submit(FIRST, *moved(x, ids, weights)).result().cpu()
    experts.end_step()
    assert torch.equal(got, CpuExperts(ROUTED).submit(FIRST, x, ids, weights).result())


def test_times_of_the_cpus_calls_are_reported(bench: MakeBench) -> None:
    made = bench(is_lazy=True)
    before = time.monotonic()
    made.step([make_inputs(1, layer) for layer in ROUTED.numbers])
    times = made.experts.host_call_times()
    assert [layer for layer, _, _ in times] == list(ROUTED.numbers)
    ends = [t for _, *pair in times for t in pair]
    assert sorted(ends) == ends and before - 1e-6 <= ends[0] and ends[-1] <= time.monotonic() + 1e-6


def test_types_without_a_kernel_have_no_slots() -> None:
    kinds = [*KINDS[:2], (T.Q4_0, T.Q8_0, T.F32)]
    with pytest.raises(ConfigError) as said:
        slot_layouts(make_experts(kinds))
    assert str(said.value).startswith(
        "no experts are kept in VRAM: those of blk.3: type F32 has no Triton kernel (supported: "
    )

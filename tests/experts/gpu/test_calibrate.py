"""Measured rates equal those of a simulated machine."""

from dataclasses import replace

import pytest
import torch
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

from hybridmoe import _C
from hybridmoe.experts import measured_rates
from hybridmoe.experts.gpu.prefill_experts import Streams
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits, Rate
from hybridmoe.kernels import ops
from hybridmoe.kernels.expert_groups import ExpertGroup, LayerStates
from hybridmoe.planning.prefill_split import costs_of, cpu_products_s
from hybridmoe.planning.rates import GpuRates, rates_of

pytest.importorskip("triton", reason="needs triton")

from kernel_device import DEVICE

from hybridmoe.experts.gpu import calibrate
from hybridmoe.experts.gpu.calibrate import FEW_TOKENS, MANY_TOKENS, measure_gpu, with_cpu
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of

CPU = torch.device("cpu")
LAYER = ExpertWeights(
    random_matrix(T.Q4_0, 2, 32, 64, seed=0),
    random_matrix(T.Q8_0, 2, 32, 64, seed=1),
    random_matrix(T.F16, 2, 64, 32, seed=2),
)
LAYOUT = layout_of(*LAYER)
assert LAYOUT is not None
PARTS = LAYER.parts
NUM_BYTES = sum(part.num_bytes for part in PARTS)


class Machine:
    """Simulated clock: work takes its predicted time, and every third call is delayed."""

    def __init__(self, gpu: GpuRates) -> None:
        self.gpu, self.now, self.num_calls = gpu, 0.0, 0

    def spend(self, seconds: float) -> None:
        self.num_calls += 1
        self.now += seconds + (7.0 if self.num_calls % 3 == 0 else 0.0)

    def clock(self) -> float:
        return self.now

    def add_experts(self, states: LayerStates, group: ExpertGroup, *rest: object) -> None:
        num, tokens = len(group.slots), len(states.x)
        assert group.num_pairs == num * tokens
        costs = costs_of(PARTS, rates_of("avx512", dram=1, peak_ops=1), self.gpu, [tokens], 0)
        self.now += num * float(costs.gpu[0])


class Link(FakeStream):
    def __init__(self, machine: Machine) -> None:
        super().__init__(is_lazy=True)
        self._machine = machine

    def copy(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        super().copy(dst, src)
        self._machine.spend(src.nbytes / self._machine.gpu.pcie)


def test_measured_rates_are_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, restore_threads: None
) -> None:
    """Of 16 threads, 8 copy as fast as the link."""
    ops.set_num_threads(16)
    known = GpuRates(read=3e6, ops=3e8, pcie=5e5, copy=6e5, copy_cpu=0.5, expert_s=0.0)
    machine = Machine(known)

    def fill(threads: _C.CopyThreads, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.nbytes == source.nbytes
        machine.spend(source.nbytes * 8 / threads.num_threads / 6e5)

    monkeypatch.setattr(calibrate, "fill", fill)
    streams = Streams(FakeStream(is_lazy=False), FakeStream(is_lazy=False), Link(machine))
    got = measure_gpu(LAYER, LAYOUT, machine.add_experts, streams, CPU, clock=machine.clock)
    for name in ("read", "ops", "pcie", "copy", "copy_cpu", "expert_s"):
        assert getattr(got.rates, name) == pytest.approx(getattr(known, name)), name
    assert got.threads.num_threads == 8


def test_no_more_threads_copy_than_help(
    monkeypatch: pytest.MonkeyPatch, restore_threads: None
) -> None:
    ops.set_num_threads(16)
    machine = Machine(GpuRates(read=3e6, ops=3e8, pcie=1e9))
    monkeypatch.setattr(
        calibrate, "fill", lambda threads, *rest: machine.spend(4.0 / min(threads.num_threads, 4))
    )
    streams = Streams(FakeStream(is_lazy=False), FakeStream(is_lazy=False), Link(machine))
    got = measure_gpu(LAYER, LAYOUT, machine.add_experts, streams, CPU, clock=machine.clock)
    assert (got.threads.num_threads, got.rates.copy_cpu) == (4, 0.25)


def test_products_that_take_no_time_have_a_finite_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(GpuRates(read=3e6, ops=1e30, pcie=5e5, expert_s=0.0))
    monkeypatch.setattr(calibrate, "fill", lambda *args: machine.spend(1.0))
    streams = Streams(FakeStream(is_lazy=False), FakeStream(is_lazy=False), Link(machine))
    got = measure_gpu(LAYER, LAYOUT, machine.add_experts, streams, CPU, clock=machine.clock)
    assert got.rates.ops == pytest.approx(
        3e6 * MANY_TOKENS
    )  # bound by reading the dequantized weights
    assert FEW_TOKENS < MANY_TOKENS


def test_the_cpus_rates_are_measured_with_its_own_kernels(
    monkeypatch: pytest.MonkeyPatch, each_isa: None
) -> None:
    gpu, kernels = GpuRates(read=1.0, ops=1.0, pcie=1.0), isa.active()
    rate = {name: Rate(1.0, 1e9 * n) for n, name in enumerate(("read", "int8", "float32"), 1)}
    tiles = {"amx_int8": Rate(1.0, 5e9), "amx_bf16": Rate(1.0, 4e9)} if kernels == "amx" else {}
    monkeypatch.setattr(measured_rates, "measure", lambda *, quick: Limits(**rate, **tiles))
    peak = 4e9 if kernels == "amx" else 2e9
    plain = {"dram": 1e9, "float_ops": 3e9, "gpu": gpu, "has_vbmi": isa.has_vbmi()}
    want = rates_of(kernels, peak_ops=peak, **plain)
    now = [0.0]

    def expert_ffn(x: torch.Tensor, ids: torch.Tensor, *rest: object) -> None:
        """Take three times as long as predicted, the first time ten times."""
        seconds = cpu_products_s(PARTS, want, len(x)) * ids.unique().numel()
        now[0] += seconds * (3 if now[0] else 30)

    monkeypatch.setattr(calibrate, "expert_ffn", expert_ffn)
    got = with_cpu(gpu, LAYER, clock=lambda: now[0])
    assert got.ops == pytest.approx(want.ops / 3)
    assert replace(got, ops=want.ops) == want


def test_the_cpus_rate_is_measured_on_the_models_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Rate(1.0, 1e9)
    limits = Limits(read=rate, int8=rate, float32=rate, amx_int8=rate, amx_bf16=rate)
    monkeypatch.setattr(measured_rates, "measure", lambda *, quick: limits)
    assert with_cpu(GpuRates(read=1.0, ops=1.0, pcie=1.0), LAYER).ops > 0


def test_it_runs_the_real_copies_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MANY_TOKENS", 24), ("_ROUNDS", 1), ("group_size", lambda *sizes: 2)):
        monkeypatch.setattr(calibrate, name, value)
    streams = Streams(*(FakeStream(is_lazy=True) for _ in range(3)))
    got = measure_gpu(LAYER, LAYOUT, add_experts, streams, DEVICE).rates
    assert min(got.read, got.ops, got.pcie, got.copy or 0.0) > 0

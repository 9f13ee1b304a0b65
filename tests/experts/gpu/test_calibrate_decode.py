"""Measured rates of decoding equal those of a simulated GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.planning.rates import GpuRates

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import gpu_runtime
from kernel_device import DEVICE

from hybridmoe.experts.gpu import calibrate_decode
from hybridmoe.experts.gpu.calibrate_decode import (
    DecodeMeter,
    DecodeRates,
    DenseMatrices,
    measure_decode,
)
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.kernels.triton.matrix import DeviceMatrix

LAUNCH_S, WAIT_S = 5e-6, 15e-6
RATES = {T.Q8_0: 1.5e7, T.F16: 2e7, T.Q4_0: 1e7}
CPU = torch.device("cpu")
EXPERTS = RoutedExperts(
    {
        number: ExpertWeights(*(random_matrix(T.Q8_0, 4, 64, 64, seed=i) for i in range(3)))
        for number in (1, 2, 3)
    },
    top_k=2,
)
EXPERT_BYTES = EXPERTS.by_index[0].expert_bytes


class Machine(FakeStream):
    """Main stream of a simulated GPU: launches run ahead of it, and every third wait is delayed."""

    def __init__(self) -> None:
        super().__init__(is_lazy=False)
        self.now = self.ends = self.work = 0.0
        self.num_waits = 0

    def spend(self, seconds: float) -> None:
        """Queue work in a graph that is being captured; outside it is not measured."""
        self.work += seconds

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()  # the trial
        self.is_captured, self.work = True, 0.0
        function()
        self.is_captured, work = False, self.work

        def replay() -> None:
            self.now += LAUNCH_S
            self.ends = max(self.ends, self.now) + work

        return replay

    def synchronize(self) -> None:
        self.num_waits += 1
        delay = 7.0 if self.num_waits % 3 == 0 else 0.0
        self.now = max(self.now, self.ends) + WAIT_S + delay

    def meter(self) -> DecodeMeter:
        return DecodeMeter(self, self.capture, lambda: self.now)


class Slots:
    """Experts 0 and 3 of layer 1, 2 of layer 3, at 3e7 bytes/s."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.tables = {1: [4, -1, -1, 0], 2: [-1] * 4, 3: [-1, -1, 5, -1]}

    def slot_of(self, layer: int) -> Any:
        return np.array(self.tables[layer], np.int32)

    def compute(
        self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> None:
        assert x.shape == (1, EXPERTS.hidden) and ids.shape == weights.shape == (1, 2)
        chosen = [i for i in ids[0].tolist() if i >= 0]
        assert len(set(chosen)) == len(chosen)
        assert all(self.tables[layer][i] >= 0 for i in chosen)
        self._machine.spend(len(chosen) * EXPERT_BYTES / 3e7)


class HandOver:
    """Hand-over of 25 us a layer that refuses to run outside of a graph."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.num_sent = machine, 0

    def send(self, *args: object) -> None:
        assert self._machine.is_captured
        self.num_sent += 1
        self._machine.spend(25e-6)

    def add_to(self, *args: object) -> None:
        pass

    def serve(self, calls: list[object]) -> None:
        assert len(calls) == self.num_sent


def noted(kinds: list[T], rows: int = 64) -> DenseMatrices:
    dense = DenseMatrices()
    for kind in kinds:
        w = random_matrix(kind, 1, rows, 64, seed=0)
        dense.note(DeviceMatrix.from_host(w, DEVICE), w)
    return dense


def test_measured_rates_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()

    def batched_linear(x: torch.Tensor, w: DeviceMatrix) -> None:
        assert x.shape == (1, 1, 64)
        num_bytes = random_matrix(w.type, 1, w.rows, w.cols, seed=0).num_bytes
        machine.spend(num_bytes / RATES[w.type])

    monkeypatch.setattr(calibrate_decode, "batched_linear", batched_linear)
    dense = noted([T.Q8_0, T.F16, T.Q8_0, T.Q4_0, T.Q8_0])
    got = measure_decode(machine.meter(), EXPERTS, dense, Slots(machine), HandOver(machine), CPU)
    assert got.one_token == pytest.approx(RATES)
    assert got.slots == pytest.approx(3e7)
    assert got.hand_over_s == pytest.approx(25e-6 + (LAUNCH_S + WAIT_S) / 16)


def test_what_is_not_there_is_not_measured() -> None:
    machine = Machine()
    none = measure_decode(machine.meter(), EXPERTS, DenseMatrices(), None, None, CPU)
    assert none == DecodeRates({}, None, None)
    empty = Slots(machine)
    empty.tables = dict.fromkeys(empty.tables, [-1] * 4)
    assert measure_decode(machine.meter(), EXPERTS, noted([]), empty, None, CPU).slots is None


def test_rates_that_were_not_measured_stay() -> None:
    gpu = GpuRates(1.0, 2.0, 3.0, slots=4.0, hand_over_s=5.0, one_token={T.F16: 6.0, T.Q8_0: 7.0})
    assert DecodeRates({}, None, None).added_to(gpu) == gpu
    added = DecodeRates({T.Q8_0: 9.0}, 10.0, 11.0).added_to(gpu)
    assert added.one_token == {T.F16: 6.0, T.Q8_0: 9.0}
    assert (added.slots, added.hand_over_s, added.read) == (10.0, 11.0, 1.0)


def test_a_graph_has_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the middle of the model: neither its first matrix nor, for want of room, its last."""
    dense = noted([T.F16] * 20)
    (all_of_them,) = [found for _, found in dense.sample().items()]
    assert len(all_of_them) == 10
    monkeypatch.setattr(calibrate_decode, "_GRAPH_BYTES", 3 * 64 * 64 * 2 - 1)
    (some,) = dense.sample().values()
    assert [pair[0] for pair in some] == [pair[0] for pair in all_of_them[:3]]
    monkeypatch.setattr(calibrate_decode, "_GRAPH_LAUNCHES", 2)
    assert [len(found) for found in dense.sample().values()] == [2]
    dense.forget()
    assert dense.sample() == {}


def test_a_clock_that_is_too_coarse_gives_no_negative_rate() -> None:
    machine = Machine()
    times = iter([0, 0, 0, 3, 0, 3, 0, 3, 0, 0, 0, 2, 0, 2, 0, 2])  # more takes less
    meter = DecodeMeter(machine, machine.capture, lambda: float(next(times)))
    assert meter.seconds(lambda: None) == 3.0


def test_it_runs_the_real_kernels_and_hand_overs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (("_ROUNDS", 1), ("_REPEATS", 1), ("_HAND_OVERS", 3), ("_GRAPH_LAUNCHES", 1))
    for name, value in settings:
        monkeypatch.setattr(calibrate_decode, name, value)
    runtime = gpu_runtime()
    streams = runtime.open_streams()
    slots = SlotPool(EXPERTS, 5, streams.main, streams.uploads, DEVICE)
    slots.cache.fill_up()
    slots.cache.fill()
    slots.cache.begin_step()
    dense = DenseMatrices()
    for kind in (T.Q8_0, T.F32):
        w = random_matrix(kind, 1, 64, 64, seed=0)
        dense.note(DeviceMatrix.from_host(w, DEVICE), w)
    hand_over = runtime.open_hand_over(EXPERTS, streams.main)
    assert hand_over is not None
    device = runtime.device(lambda name: False, lambda on_gpu, w, name: True)
    meter = DecodeMeter(streams.main, device.capture)
    got = measure_decode(meter, EXPERTS, dense, slots, hand_over, DEVICE)
    assert got.slots is not None and got.hand_over_s is not None
    assert min(*got.one_token.values(), got.slots, got.hand_over_s) > 0
    sent, done = hand_over._counters[:, 0].tolist()
    assert sent == done >= 2 * 3  # a warm-up and a round of three
    slots.close()

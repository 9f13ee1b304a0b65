"""Measured rates that are kept: for a day, for the same machine and kernels."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

pytest.importorskip("triton", reason="needs triton")

from hybridmoe.experts.gpu.calibrate_decode import DecodeRates
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import topology
from hybridmoe.placement import kept_rates as module
from hybridmoe.placement.gpu_runtime import gpu_identity
from hybridmoe.placement.kept_rates import kept_decode_rates, kept_rates, machine_key
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

GPU = GpuRates(read=1e12, ops=2e13, pcie=5e10, copy=3e10, copy_cpu=0.25, expert_s=0.0)
RATES = rates_of("avx2", dram=1e11, peak_ops=1e12, gpu=GPU)


class Measuring:
    """Counts measurements, each of which finds other rates."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> tuple[Rates, int]:
        self.count += 1
        return replace(RATES, dram=self.count * 1e11), self.count


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "hybridmoe" / "rates.json"


def test_rates_are_measured_once_a_day_for_each_key() -> None:
    measure, clock = Measuring(), [1000.0]
    first = kept_rates("a", measure, now=lambda: clock[0])
    assert kept_rates("a", measure, now=lambda: clock[0] + 86399) == first
    assert kept_rates("b", measure, now=lambda: clock[0])[1] == 2
    assert kept_rates("a", measure, now=lambda: clock[0]) == first == (RATES, 1)
    clock[0] += 86401
    assert kept_rates("a", measure, now=lambda: clock[0])[1] == 3
    clock[0] -= 172800  # a clock that was set back
    assert kept_rates("a", measure, now=lambda: clock[0])[1] == 4


@pytest.mark.parametrize(
    "damage",
    ["", "[]", '{"a": 1}', '{"a": {"time": 1.0}}', '{"a": {"time": 1.0, "gpu": {"x": 1}}}'],
)
def test_a_damaged_file_is_measured_over(damage: str, state: Path) -> None:
    state.parent.mkdir()
    state.write_text(damage)
    measure = Measuring()
    assert kept_rates("a", measure, now=lambda: 2.0) == (RATES, 1)
    assert kept_rates("a", measure, now=lambda: 3.0)[1] == measure.count == 1
    assert list(json.loads(state.read_text())) == ["a"]


def test_rates_of_decoding_are_kept_beside_the_others(state: Path) -> None:
    first = DecodeRates({T.Q8_0: 1.5e12, T.F32: 2e12}, None, 25e-6)
    measured = [first, DecodeRates({}, 1e12, None)]

    def measure() -> DecodeRates:
        return measured.pop(0)

    kept_rates("a", Measuring(), now=lambda: 1.0)
    assert kept_decode_rates("a", measure, now=lambda: 2.0) == first
    assert kept_decode_rates("a", measure, now=lambda: 3.0) == first
    assert kept_rates("a", Measuring(), now=lambda: 3.0) == (RATES, 1)
    entries = json.loads(state.read_text())
    entries["a decode"]["one_token"] = {"Q9": 1.0}
    state.write_text(json.dumps(entries))
    assert kept_decode_rates("a", measure, now=lambda: 4.0).slots == 1e12
    assert kept_decode_rates("a", measure, now=lambda: 5.0) == DecodeRates({}, 1e12, None)


def test_without_a_place_every_load_measures(state: Path) -> None:
    state.parent.write_text("a file, no folder")
    measure = Measuring()
    kept_rates("a", measure)
    kept_rates("a", measure)
    assert measure.count == 2


def test_equal_gpus_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link of one of them may be slower."""

    for facts in ([{"uuid": "a"}, {"uuid": "b"}], [{}, {}]):  # older torch has no uuid
        gpus = [SimpleNamespace(name="RTX 4090", **fact) for fact in facts]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d, g=gpus: g[d.index])
        names = {gpu_identity(torch.device("cuda", i)) for i in (0, 1)}
        assert len(names) == 2 and all(name.startswith("RTX 4090 ") for name in names)


def test_a_key_names_what_rates_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = ExpertWeights(*(random_matrix(T.Q8_0, 2, 32, 32, seed=i) for i in range(3)))
    other = experts._replace(down=random_matrix(T.Q4_0, 2, 32, 32, seed=1))
    keys = {machine_key("a GPU", experts), machine_key("another", experts)}
    keys.add(machine_key("a GPU", other))
    monkeypatch.setattr(module, "num_threads", lambda: topology.num_threads() + 1)
    keys.add(machine_key("a GPU", experts))
    assert len(keys) == 4

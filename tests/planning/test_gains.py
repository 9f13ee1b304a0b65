"""Marginal gains: each is the prediction for a plan of its own; only what can help is listed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from k2_header import write_k2

from hybridmoe.config import EngineConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline
from hybridmoe.planning.conversation import Conversation, Speed, speed_of
from hybridmoe.planning.gains import Gain, gains
from hybridmoe.planning.gpu_specs import spec_named
from hybridmoe.planning.hit_curve import CurvePoints
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates, rates_of
from hybridmoe.planning.stage_cost import StagedCost

GIB = 1 << 30
GPU = GpuRates.assumed(*spec_named("rtx-4090")[1:])
RATES = rates_of("amx", dram=100e9, peak_ops=30e12, disk=5e9)
TOKENS = Conversation(2048, 128)


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    return read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))


class Case:
    """Budgets for K2 on a number of GPUs, and what is predicted within them."""

    def __init__(self, k2: Outline, ram_gib: int, num_gpus: int = 0, **more: Any) -> None:
        gpus = (GpuBudget("rtx-4090", 24 * GIB),) * num_gpus
        self.budgets = Budgets(ram_bytes=ram_gib * GIB, **more).with_gpus(*gpus)
        self.gpu_rates = [GPU] * num_gpus
        self.rates = replace(RATES, gpu=GPU if num_gpus else None)
        self.k2 = k2

    def within(self, budgets: Budgets) -> Plan:
        engine = EngineConfig(context_tokens=32768, kv_tokens=32768)
        return plan_memory(self.k2.config, self.k2.tensors, engine, budgets)

    def gains(self, curve: CurvePoints | None = None, **rates: float) -> list[Gain]:
        plan = self.within(self.budgets)
        return gains(plan, self.within, self.rates, self.gpu_rates, TOKENS, curve, **rates)

    def speed(self, budgets: Budgets, disk: float = 5e9) -> Speed:
        rates = replace(self.rates, disk=disk)
        return speed_of(StagedCost(self.within(budgets), rates, self.gpu_rates), TOKENS)


def names(found: Sequence[Gain]) -> list[str]:
    return [gain.more for gain in found]


def test_each_gain_is_the_prediction_for_the_larger_machine(k2: Outline) -> None:
    case = Case(k2, 100)
    more_ram = replace(case.budgets, ram_bytes=101 * GIB)
    now = case.speed(case.budgets)
    assert case.gains() == [
        Gain("1 GiB of RAM", case.speed(more_ram)),
        Gain("1 GB/s of disk", case.speed(case.budgets, disk=6e9)),
    ]
    assert all(gain.speed.decode > now.decode for gain in case.gains())


def test_a_budget_for_experts_grows_with_ram(k2: Outline) -> None:
    given = Case(k2, 100, expert_ram_bytes=50 * GIB)
    ram = given.gains()[0]
    grown = Budgets(ram_bytes=101 * GIB, expert_ram_bytes=51 * GIB)
    assert ram == Gain("1 GiB of RAM", given.speed(grown))
    assert ram.speed.decode > given.speed(given.budgets).decode


def test_vram_grows_on_each_gpu_where_all_fits_into_ram(k2: Outline) -> None:
    one, two = Case(k2, 1000, 1), Case(k2, 1000, 2)
    larger = GpuBudget("rtx-4090", 25 * GIB)
    assert one.gains() == [Gain("1 GiB of VRAM", one.speed(one.budgets.with_gpus(larger)))]
    assert two.gains() == [
        Gain("1 GiB of VRAM, each GPU", two.speed(two.budgets.with_gpus(larger, larger)))
    ]


def test_all_three_tiers_gain_where_a_gpu_stands_over_the_disk(k2: Outline) -> None:
    case = Case(k2, 100, 1)
    ram, vram, disk = case.gains()
    now = case.speed(case.budgets)
    larger = case.budgets.with_gpus(GpuBudget("rtx-4090", 25 * GIB))
    assert vram == Gain("1 GiB of VRAM", case.speed(larger))
    assert [ram.more, disk.more] == ["1 GiB of RAM", "1 GB/s of disk"]
    assert min(ram.speed.decode, disk.speed.decode) > now.decode
    assert vram.speed.decode > ram.speed.decode, "it is found by the GPU, and not by the CPU"


def test_what_cannot_help_is_left_out(k2: Outline) -> None:
    assert names(Case(k2, 1000).gains()) == []
    assert names(Case(k2, 100).gains()) == ["1 GiB of RAM", "1 GB/s of disk"]


def test_hit_rates_that_were_given_are_known_for_their_slots_alone(k2: Outline) -> None:
    assert names(Case(k2, 100).gains(hit_rate=0.5)) == ["1 GB/s of disk"]
    assert names(Case(k2, 1000, 1).gains(vram_rate=0.5)) == []


def test_a_steeper_hit_curve_makes_ram_worth_more(k2: Outline) -> None:
    case = Case(k2, 100)
    num_slots = case.within(case.budgets).num_ram_experts
    flat = CurvePoints((num_slots, 2 * num_slots), (0.5, 0.6))
    steep = CurvePoints((num_slots, 2 * num_slots), (0.5, 0.95))
    assert case.gains(steep)[0].speed.decode > case.gains(flat)[0].speed.decode
    assert case.gains(steep)[1] == case.gains(flat)[1]


def test_a_larger_machine_that_cannot_be_planned_is_left_out(k2: Outline) -> None:
    case = Case(k2, 100)

    def refuse(budgets: Budgets) -> Plan:
        raise ConfigError("no")

    plan = case.within(case.budgets)
    assert names(gains(plan, refuse, case.rates, [], TOKENS)) == ["1 GB/s of disk"]

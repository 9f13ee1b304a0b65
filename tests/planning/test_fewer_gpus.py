"""Fewer of several GPUs: the fastest choice is found, and only where it is faster."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from k2_header import write_k2

from hybridmoe.config import EngineConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline
from hybridmoe.planning.conversation import Conversation
from hybridmoe.planning.fewer_gpus import FewerGpus, fewer_gpus
from hybridmoe.planning.gpu_specs import spec_named
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates, rates_of
from hybridmoe.planning.stage_cost import StagedCost

RATES = rates_of("amx", dram=200e9, peak_ops=30e12, gpu=GpuRates(1.0, 1.0, 1.0))
TOKENS = Conversation(2048, 128)


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    return read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))


def rates_named(name: str) -> GpuRates:
    return GpuRates.assumed(*spec_named(name)[1:])


def budgets_of(names: Sequence[str]) -> Budgets:
    gpus = (GpuBudget(name, spec_named(name).vram_gib << 30) for name in names)
    return Budgets(ram_bytes=2000 << 30).with_gpus(*gpus)


def plan_within(k2: Outline, budgets: Budgets) -> Plan:
    engine = EngineConfig(context_tokens=32768, kv_tokens=32768)
    return plan_memory(k2.config, k2.tensors, engine, budgets)


def find(k2: Outline, names: Sequence[str]) -> FewerGpus | None:
    plan = plan_within(k2, budgets_of(names))
    gpus = [rates_named(name) for name in names]
    return fewer_gpus(plan, lambda budgets: plan_within(k2, budgets), RATES, gpus, TOKENS)


def seconds(k2: Outline, names: Sequence[str]) -> float:
    """Time of the conversation, with these GPUs alone; infinite where nothing fits."""
    gpus = [rates_named(name) for name in names]
    try:
        plan = plan_within(k2, budgets_of(names))
    except ConfigError:
        return float("inf")
    cost = StagedCost(plan, replace(RATES, gpu=gpus[0]), gpus)
    return cost.prompt(2048).total_s + 128 * cost.decode(2048 + 64).total_s


@pytest.mark.parametrize(
    "names",
    [
        ("rtx-4090", "rtx-3060"),
        ("rtx-3060", "rtx-4090"),
        ("rtx-3060", "rtx-5090", "rtx-4090"),
        ("rtx-3060", "rtx-5090", "rtx-5090", "rtx-4060"),
    ],
)
def test_the_fastest_choice_is_found(k2: Outline, names: tuple[str, ...]) -> None:
    found = find(k2, names)
    assert found is not None and "rtx-3060" not in found.names
    assert found.names == tuple(names[i] for i in found.numbers)
    choices = [c for n in range(1, len(names)) for c in combinations(names, n)]
    assert found.speed.seconds == pytest.approx(min(seconds(k2, choice) for choice in choices))
    assert found.of_all.seconds == pytest.approx(seconds(k2, names))
    assert found.of_all.seconds > 1.02 * found.speed.seconds


def test_nothing_is_said_where_all_are_the_fastest(k2: Outline) -> None:
    assert find(k2, ("rtx-4090", "rtx-4090")) is None
    assert find(k2, ("rtx-5090", "rtx-pro-6000")) is None
    assert find(k2, ("rtx-3060", "rtx-3060")) is None  # the model does not fit one


def test_many_gpus_are_not_compared_in_all_ways(k2: Outline) -> None:
    """Of more than 6, one alone and all but one; equal ones once."""
    equal, plans = ("rtx-5090",) * 8, []

    def noted(budgets: Budgets) -> Plan:
        plans.append(len(budgets.gpus) or 1)
        return plan_within(k2, budgets)

    plan = plan_within(k2, budgets_of(equal))
    fewer_gpus(plan, noted, RATES, [rates_named("rtx-5090")] * 8, TOKENS)
    assert plans == [1, 7]


def test_the_line_has_the_machines_numbers(k2: Outline) -> None:
    found = find(k2, ("rtx-3060", "rtx-5090", "rtx-5090", "rtx-4060"))
    assert found is not None
    line = found.line([0, 3, 2, 1])
    assert "cuda:3 (rtx-5090)" in line and "\n" not in line
    assert ("alone" in line) == (len(found.names) == 1)

"""Prompts over the disk: reads go on from layer to layer, and find what is resident."""

from dataclasses import replace

import pytest
from k2_header import write_k2
from memory_plans import plan_of, with_staging

from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.cost_model import Hits, Step, hits_of
from hybridmoe.planning.model_sizes import ModelSizes, sizes_of
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import PROMPT_OVERHEAD, Rates

RATES = Rates(isa="amx", dram=200e9, ops=10e12, attention_ops=2e12, disk=1e9)
NUM_LAYERS, NUM_MOE = 61, 60


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    outline = read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))
    return sizes_of(outline.tensors, outline.config)


@pytest.fixture
def plan(k2: ModelSizes) -> Plan:
    return plan_of(k2, 128)


def without_reading(step: Step) -> float:
    return step.total_s - step.seconds["waiting for disk"]


def head_s(plan: Plan, rates: Rates) -> float:
    """Seconds of the output head, once a prompt."""
    parts = plan.problem.sizes.head
    return PROMPT_OVERHEAD * sum(map(rates.token_s, parts))


def test_reading_hides_all_computing_where_the_disk_is_slow(plan: Plan) -> None:
    step = prompt(plan, RATES, hits_of(plan), 512)
    reading = step.read_bytes["disk"] / 1e9
    outside = without_reading(step) - step.seconds["experts"] - head_s(plan, RATES)
    first_layer = outside / NUM_LAYERS  # it has no experts
    assert step.total_s == pytest.approx(reading + first_layer + head_s(plan, RATES))


def test_computing_hides_all_reading_where_the_disk_is_fast(plan: Plan) -> None:
    fast = replace(RATES, disk=1e12)
    step = prompt(plan, fast, hits_of(plan), 512)
    assert step.seconds["waiting for disk"] == 0
    assert step.total_s == pytest.approx(without_reading(prompt(plan, RATES, hits_of(plan), 512)))


def test_reading_pauses_where_the_streaming_buffers_are_full(plan: Plan) -> None:
    assert plan.disk_cache is not None
    few = with_staging(plan, 0)
    long, short = (prompt(p, RATES, hits_of(p), 512) for p in (few, plan))
    outside = without_reading(short) - short.seconds["experts"] - head_s(plan, RATES)
    pauses = NUM_MOE * outside / NUM_LAYERS
    assert long.total_s == pytest.approx(short.total_s + pauses)
    one = with_staging(plan, 1)
    filled = sum(p.num_layers * p.buffer_bytes for p in plan.disk_cache.pools) / 1e9
    between = prompt(one, RATES, hits_of(one), 512)
    assert between.total_s == pytest.approx(short.total_s + max(0.0, pauses - filled))
    assert short.total_s < between.total_s < long.total_s


def test_short_steps_read_layer_by_layer(plan: Plan) -> None:
    short = prompt(plan, RATES, hits_of(plan), 16)
    reading = short.read_bytes["disk"] / 1e9
    assert short.seconds["waiting for disk"] == pytest.approx(reading - short.seconds["experts"])
    long = prompt(plan, RATES, hits_of(plan), 17)
    assert (
        long.seconds["waiting for disk"] < long.read_bytes["disk"] / 1e9 - long.seconds["experts"]
    )


def test_a_long_prompt_finds_what_is_resident_and_one_token_what_a_trace_showed(plan: Plan) -> None:
    shown, held = Hits(0, 0.9), hits_of(plan).ram
    assert held < 0.2

    def found(touched: float) -> float:
        read = prompt(plan, RATES, shown, 512, lambda _: touched).read_bytes
        chosen = touched * sum(plan.problem.sizes.expert_bytes)
        return 1 - read["disk"] / chosen

    for touched, share in ((384, held), (192, (0.9 + held) / 2), (4, 0.9 + (held - 0.9) / 96)):
        assert found(touched) == pytest.approx(share)

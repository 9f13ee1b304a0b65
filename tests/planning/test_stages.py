"""Layers over several GPUs: each budget kept, layers in order, what a token then costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from k2_header import write_k2

from hybridmoe.config import EngineConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline
from hybridmoe.planning.cost_model import Hits, decode, hits_of
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.placement_rules import PlacementRules
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import GpuRates, rates_of
from hybridmoe.planning.stage_cost import CROSSING, StagedCost

GIB = 1 << 30
NAMES = ("RTX 4090", "RTX 3060", "unknown")


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    return read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))


def plan(
    k2: Outline, *gpus: tuple[str, float], ram_gib: float = 2000, place: tuple[str, ...] = ()
) -> Plan:
    budgets = Budgets(ram_bytes=int(ram_gib * GIB)).with_gpus(
        *(GpuBudget(name, int(gib * GIB)) for name, gib in gpus)
    )
    engine = EngineConfig(context_tokens=32768, kv_tokens=32768)
    return plan_memory(k2.config, k2.tensors, engine, budgets, PlacementRules(place))


def sizes_of_ranges(found: Plan) -> list[int]:
    return [len(stage.problem.sizes.layers) for stage in found.stages]


def coverage(stage: Plan) -> float:
    return stage.num_vram_slots / stage.num_experts


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(5, 96)), min_size=2, max_size=5))
def test_every_budget_is_kept_and_the_layers_are_in_order(
    k2: Outline, gpus: list[tuple[str, float]]
) -> None:
    try:
        found = plan(k2, *gpus)
    except ConfigError as error:
        assert "VRAM: " in str(error) and "\n" not in str(error)
        return
    layers = [number for stage in found.stages for number in stage.problem.sizes.layers]
    assert layers == list(range(61))
    assert len(found.stages) == len(gpus)
    for stage, (name, gib) in zip(found.stages, gpus, strict=True):
        assert stage.vram is not None and stage.problem.budgets.gpu_name == name
        assert stage.vram.used_bytes <= stage.vram.budget_bytes == gib * GIB
        assert stage.num_vram_slots <= stage.num_experts
    assert found.vram is not None
    for name, size in found.vram.parts:
        assert size == sum(dict(stage.vram.parts)[name] for stage in found.stages if stage.vram)
    assert found.num_vram_slots == sum(stage.num_vram_slots for stage in found.stages)
    assert found.num_vram_slots + found.num_ram_experts == found.num_experts
    total = sum(stage.num_ram_experts for stage in found.stages)
    assert total == found.num_ram_experts


def test_weights_and_kv_cache_are_shared_out_and_the_head_is_with_the_last(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24), ("RTX 4090", 24))
    alone = plan(k2, ("RTX 4090", 80))
    first, last = (stage.problem.sizes for stage in found.stages)
    whole = alone.problem.sizes
    for what in ("gpu_bytes", "dense_bytes", "all_expert_bytes", "embedding_bytes"):
        assert getattr(first, what) + getattr(last, what) == getattr(whole, what)
    assert not first.head and last.head == whole.head
    kv = [stage.kv.num_bytes for stage in found.stages]
    assert sum(kv) == alone.kv.num_bytes and kv[0] * 61 == len(first.layers) * sum(kv)
    assert found.kv == alone.kv


def test_cards_hold_the_same_share_of_their_experts(k2: Outline) -> None:
    for gpus in ([24, 24], [24, 12], [12, 24], [80, 24, 24]):
        found = plan(k2, *(("RTX 4090", gib) for gib in gpus))
        shares = [coverage(stage) for stage in found.stages]
        assert max(shares) - min(shares) < 0.03, (gpus, shares)
    larger, smaller = sizes_of_ranges(plan(k2, ("RTX 4090", 24), ("RTX 4090", 12)))
    assert larger > 2 * smaller  # each card has a fixed part


def test_where_all_fits_the_faster_card_takes_what_it_can(k2: Outline) -> None:
    place = ("exps=cpu",)  # no slots: only weights and KV cache
    fast = sizes_of_ranges(plan(k2, ("RTX 4090", 24), ("RTX 3060", 24), place=place))
    slow = sizes_of_ranges(plan(k2, ("RTX 3060", 24), ("RTX 4090", 24), place=place))
    assert fast == [60, 1] and slow == [1, 60]
    assert sizes_of_ranges(plan(k2, ("a", 24), ("a", 24), place=place)) == [30, 31]
    assert sizes_of_ranges(plan(k2, ("a", 40), ("a", 20), place=place)) == [41, 20]


def test_pinned_experts_are_on_the_card_of_their_layer(k2: Outline) -> None:
    place = (r"blk\.(1|60)\..*_exps=cuda", r"blk\.2\..*_exps=cpu")
    found = plan(k2, ("RTX 4090", 32), ("RTX 4090", 32), place=place)
    assert [stage.problem.layers.gpu for stage in found.stages] == [{1}, {60}]
    assert [stage.problem.layers.cpu for stage in found.stages] == [{2}, set()]
    assert all(stage.num_vram_slots >= 384 for stage in found.stages)
    with pytest.raises(ConfigError, match="layers 48-60: VRAM: 768 experts are to be placed"):
        plan(k2, ("RTX 4090", 32), ("RTX 4090", 9), place=(r"blk\.(59|60)\..*_exps=cuda",))


def test_every_card_has_slots_over_its_layers_share_of_ram_and_disk(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24), ("RTX 3060", 12), ram_gib=128)
    assert found.disk_cache is not None and found.num_disk_experts > 0
    assert sum(stage.num_disk_experts for stage in found.stages) == pytest.approx(
        found.num_disk_experts, abs=2
    )
    for stage in found.stages:
        assert min(stage.num_vram_slots, stage.num_ram_experts, stage.num_disk_experts) > 0
        rest = stage.num_experts - stage.num_vram_slots
        assert stage.num_ram_experts + stage.num_disk_experts == rest
        share = found.num_disk_experts / (found.num_experts - found.num_vram_slots)
        assert stage.num_disk_experts == pytest.approx(share * rest, abs=1)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ([("a", 24)] * 62, "device: 62 GPUs for a model of 61 layers: name at most 61"),
        ([("small", 6), ("smaller", 4)], "^small, layers 0-36: VRAM: 6.9.* raise --vram to"),
        ([("large", 80), ("tiny", 1)], "^tiny, layers 60: VRAM: "),
    ],
)
def test_what_does_not_fit_is_one_line(
    k2: Outline, gpus: list[tuple[str, float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(k2, *gpus)
    assert "\n" not in str(caught.value)


def test_one_gpu_has_the_plan_of_before(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24))
    assert found.stages == (found,) and found.problem.sizes.only is None
    assert found.facts()["gpus"] == []


def test_facts_and_lines_name_each_card(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24), ("RTX 3060", 12))
    first, second = found.facts()["gpus"]
    assert (first["name"], second["name"]) == ("RTX 4090", "RTX 3060")
    assert first["num_layers"] == second["first_layer"] == 61 - second["num_layers"]
    assert first["num_experts"] + second["num_experts"] == found.num_vram_slots
    lines = [line for line in found.lines if "VRAM;" in line]
    assert lines[0].startswith(f"RTX 4090: layers 0-{first['num_layers'] - 1}; ")
    assert lines[1].startswith(f"RTX 3060: layers {first['num_layers']}-60; ")


GPU = GpuRates(read=700e9, ops=60e12, pcie=25e9)
SLOW = GpuRates(read=350e9, ops=20e12, pcie=12e9)
RATES = rates_of("amx", dram=200e9, peak_ops=10e12, gpu=GPU)


def test_two_equal_cards_cost_what_one_large_one_does_and_the_crossing(k2: Outline) -> None:
    """Without slots: then the experts' part is the same."""
    place = ("exps=cpu",)
    one, two = (
        plan(k2, *gpus, place=place)
        for gpus in ([("RTX 4090", 48)], [("RTX 4090", 24), ("RTX 4090", 24)])
    )
    cost = StagedCost(two, RATES, [GPU, GPU])
    for found, want, tokens in (
        (cost.decode(100), decode(one, RATES, Hits(0, 1), 100), 1),
        (cost.prompt(512), prompt(one, RATES, Hits(0, 1), 512), 512),
    ):
        crossing = found.seconds.pop(CROSSING)
        assert crossing == pytest.approx(30e-6 + 4 * 7168 * tokens / 25e9)
        assert found.seconds == pytest.approx(want.seconds)
        assert found.read_bytes == pytest.approx(want.read_bytes)


def test_a_slower_second_card_costs_its_own_time(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24), ("RTX 3060", 24), place=("exps=cpu",))
    both = StagedCost(found, RATES, [GPU, GPU]).decode(100)
    slower = StagedCost(found, RATES, [GPU, SLOW]).decode(100)
    last = found.stages[-1].problem.sizes
    shared = sum(part.num_bytes for part in last.shared)  # beside the experts
    more = (last.dense_bytes - shared) * (1 / 350e9 - 1 / 700e9)
    assert slower.seconds["dense weights"] - both.seconds["dense weights"] == pytest.approx(more)
    assert slower.seconds[CROSSING] > both.seconds[CROSSING]
    assert slower.seconds["experts"] == pytest.approx(both.seconds["experts"])


def test_with_one_card_the_prediction_is_the_cost_models(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24))
    cost = StagedCost(found, RATES, [GPU])
    assert cost.hits == hits_of(found)
    assert cost.decode(100) == decode(found, RATES, cost.hits, 100)
    assert cost.prompt(1024) == prompt(found, RATES, cost.hits, 1024)


def test_a_hit_curve_counts_for_each_cards_share(k2: Outline) -> None:
    found = plan(k2, ("RTX 4090", 24), ("RTX 4090", 24))

    def curve(slots: int) -> float:
        return (slots / 23040) ** 0.5

    with_curve, uniform = (StagedCost(found, RATES, [GPU, GPU], c) for c in (curve, None))
    assert with_curve.decode(100).read_bytes["VRAM"] > uniform.decode(100).read_bytes["VRAM"]
    chosen = found.problem.sizes
    per_token = sum(chosen.expert_bytes) * 8
    more = with_curve.decode(100).read_bytes["VRAM"] - uniform.decode(100).read_bytes["VRAM"]
    share = with_curve.hits.vram - uniform.hits.vram
    assert more == pytest.approx(per_token * share, rel=0.03)

"""The cost model: sums worked out by hand, and what must hold whatever the numbers are."""

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st
from k2_header import write_k2
from memory_plans import plan_of

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import outline_of, read_outline
from hybridmoe.planning.cost_model import Hits, attention_cost, decode, hits_of
from hybridmoe.planning.model_sizes import ModelSizes, Part, sizes_of
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import (
    DENSE_OVERHEAD,
    FUSED_LAYER_S,
    FUSED_STEP_S,
    LAYER_S,
    PRODUCTS,
    PROMPT_OVERHEAD,
    ROW_COLS,
    STEP_S,
    WHOLE_MODEL_SHARE,
    GpuRates,
    Rates,
    rates_of,
)
from hybridmoe.planning.releases import release_named

GIB = 1 << 30
GPU = GpuRates(read=700e9, ops=60e12, pcie=25e9)
RATES = Rates(isa="amx", dram=200e9, ops=10e12, attention_ops=2e12, disk=6e9, gpu=GPU, layer_s=1e-4)
TOY_TOKEN_KV = 2 * 576 * 2
ONE_MB = 1e6 / WHOLE_MODEL_SHARE  # of DRAM, so that decoding float32 gets 1 MB/s


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    path: Path = tmp_path_factory.mktemp("k2") / "k2.gguf"
    outline = read_outline(write_k2(path))
    return sizes_of(outline.tensors, outline.config)


@pytest.fixture(scope="module")
def toy(k2: ModelSizes) -> ModelSizes:
    """Two layers, one with experts; every matrix float32, read at the whole of a rate."""
    config: ModelConfig = replace(
        k2.config, num_layers=2, num_dense_layers=1, num_experts=4, top_k=2, vocab_size=100
    )
    return ModelSizes(
        config=config,
        embedding_bytes=4000,
        head=(Part(Q.F32, 1000, 4000),),
        is_tied=False,
        dense=(Part(Q.F32, 3000, 12000),),
        experts=((Part(Q.F32, 250, 1000),),),
        piece_bytes=(400, 300, 300),
        gpu_bytes=16000,
    )


def all_in(sizes: ModelSizes) -> Plan:
    return plan_of(sizes, 2000)


def test_a_token_without_gpu_or_disk_by_hand(toy: ModelSizes) -> None:
    rates = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e12)  # 1 MB/s reached
    step = decode(all_in(toy), rates, Hits(0, 1), 100)
    c = toy.config
    assert step.seconds["dense weights"] == pytest.approx(16000 / 1e6)
    assert step.seconds["experts"] == pytest.approx(2 * 1000 / 1e6)
    assert step.seconds["waiting for disk"] == 0
    assert step.seconds["between kernels"] == pytest.approx(2 * FUSED_LAYER_S + FUSED_STEP_S)
    from_disk = decode(all_in(toy), replace(rates, disk=ONE_MB), Hits(0, 0.5), 100)
    assert from_disk.seconds["between kernels"] == pytest.approx(2 * LAYER_S + STEP_S)
    kv_bytes = 101 * TOY_TOKEN_KV  # read at the whole of DRAM's rate, slower than the arithmetic
    assert step.seconds["attention"] == pytest.approx(kv_bytes / rates.dram)
    assert step.read_bytes == {"VRAM": 0, "RAM": 16000 + 40 + 2000 + kv_bytes, "disk": 0}
    assert step.tokens_per_s == pytest.approx(1 / sum(step.seconds.values()))
    fast = replace(rates, dram=1e15, attention_ops=1e9)
    heads = c.num_heads + 9  # whose products take as long as the conversion of a latent
    ops = 2 * 101 * 2 * heads * (2 * c.kv_lora_rank + c.rope_dim)
    assert decode(all_in(toy), fast, Hits(0, 1), 100).seconds["attention"] == pytest.approx(
        ops / 1e9
    )


def test_reads_from_disk_by_hand(toy: ModelSizes) -> None:
    """Two chosen experts, each on disk with probability 1/2: 0, 1, 2 with 1/4, 1/2, 1/4."""
    rates = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e12, disk=1e5)
    step = decode(all_in(toy), rates, Hits(0, 0.5), 0)
    compute, read = 1000 / 1e6, 1000 / 1e5
    total = 0.25 * 2 * compute + 0.5 * (read + compute) + 0.25 * (2 * read + compute)
    assert step.seconds["experts"] == pytest.approx(2 * compute)
    assert step.seconds["waiting for disk"] == pytest.approx(total - 2 * compute)
    assert step.read_bytes["disk"] == 1000


def test_a_claim_of_many_chosen_experts_ends(toy: ModelSizes) -> None:
    many = replace(toy, config=replace(toy.config, num_experts=1 << 20, top_k=1 << 19))
    assert decode(plan_of(many, 1e5), RATES, Hits(0.2, 0.3), 0).total_s > 0


def test_gpu_and_cpu_work_at_once(toy: ModelSizes) -> None:
    gpu = GpuRates(read=1e6, ops=1e12, pcie=1e9)
    rates = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e12, gpu=gpu)
    step = decode(plan_of(toy, 2000, 40), rates, Hits(0.5, 0.5), 0)
    one = 1000 / 1e6  # on either side
    assert step.seconds["experts"] == pytest.approx(0.25 * 2 * one + 0.5 * one + 0.25 * 2 * one)
    assert step.read_bytes["VRAM"] == pytest.approx(16000 + TOY_TOKEN_KV + 1000)


def test_a_prompt_by_hand(toy: ModelSizes) -> None:
    """Steps of 10, 10 and 5 tokens, each of which chooses half of the four experts."""
    rates = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e6)
    step = prompt(plan_of(toy, 2000, step_tokens=10), rates, Hits(0, 1), 25)
    unpack = PRODUCTS["avx512"].unpack_tokens
    assert step.num_tokens == 25
    assert step.seconds["between kernels"] == pytest.approx(3 * (2 * LAYER_S + STEP_S))
    dense = DENSE_OVERHEAD * 2 * 3000 * (25 + 3 * unpack) / 1e6
    assert step.seconds["dense weights"] == pytest.approx(PROMPT_OVERHEAD * (dense + 4000 / 1e6))
    touched = sum(4 * (1 - 0.5**tokens) for tokens in (10, 10, 5))
    assert step.seconds["experts"] == pytest.approx(
        PROMPT_OVERHEAD * 2 * 250 * (25 * 2 + touched * unpack) / 1e6
    )
    c = toy.config
    pairs = 25 * 26 / 2
    ops = 2 * pairs * 2 * c.num_heads * (2 * c.kv_lora_rank + c.rope_dim)
    assert step.seconds["attention"] == pytest.approx(PROMPT_OVERHEAD * ops / 1e6)


def test_weights_that_are_read_slower_than_multiplied_take_their_reading(toy: ModelSizes) -> None:
    rates = Rates("avx512", dram=ONE_MB / 1e3, ops=1e9, attention_ops=1e12)
    step = prompt(plan_of(toy, 2000), rates, Hits(0, 1), 64)
    assert step.seconds["experts"] == pytest.approx(PROMPT_OVERHEAD * 4 * 1000 / 1e3)
    assert step.seconds["dense weights"] == pytest.approx(
        PROMPT_OVERHEAD * (DENSE_OVERHEAD * 12000 + 4000) / 1e3
    )


def test_fewer_experts_where_a_trace_says_so(toy: ModelSizes) -> None:
    plan = plan_of(toy, 2000)
    uniform = prompt(plan, RATES, Hits(0, 1), 64)
    same = prompt(plan, RATES, Hits(0, 1), 64, lambda tokens: 4 * (1 - 0.5**tokens))
    assert same == uniform
    skewed = prompt(plan, RATES, Hits(0, 1), 64, lambda tokens: 2.0)
    assert skewed.read_bytes["RAM"] == pytest.approx(uniform.read_bytes["RAM"] - 2 * 1000)


def test_a_card_expands_the_keys_of_a_prompt_by_hand(toy: ModelSizes) -> None:
    """Two steps of 70 tokens, the second over 140 positions; a step of 60 stays in latent space."""
    gpu = GpuRates(read=1e15, ops=1e6, pcie=1e15, copy=1e15)
    rates = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e6, gpu=gpu)
    c, layers = toy.config, 2
    expanded = 2 * c.num_heads * (c.nope_dim + c.rope_dim + c.v_dim) * 140 * 141 / 2
    expanded += 2 * c.num_heads * c.kv_lora_rank * (c.nope_dim + c.v_dim) * (70 + 140)
    step = prompt(plan_of(toy, 2000, 40, step_tokens=70), rates, Hits(1, 0), 140)
    assert step.seconds["attention"] == pytest.approx(PROMPT_OVERHEAD * layers * expanded / 1e6)
    latent = 2 * c.num_heads * (2 * c.kv_lora_rank + c.rope_dim) * 60 * 61 / 2
    step = prompt(plan_of(toy, 2000, 40, step_tokens=70), rates, Hits(1, 0), 60)
    assert step.seconds["attention"] == pytest.approx(PROMPT_OVERHEAD * layers * latent / 1e6)


def test_a_cpu_expands_the_keys_of_a_prompt_by_hand(
    k2: ModelSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 300 tokens after 212."""
    plan = plan_of(k2, 700, 24)
    c, layers = k2.config, len(k2.layers)
    rates = Rates("avx2", dram=1e30, ops=1e6, attention_ops=1e6)
    seconds, _ = attention_cost(plan, rates, None, 300, 212)
    pairs = (512 * 513 - 212 * 213) / 2
    products = pairs * (c.qk_dim + c.v_dim) + 512 * (c.nope_dim + c.v_dim) * c.kv_lora_rank
    assert seconds == pytest.approx(layers * 2 * c.num_heads * products / 1.7 / 1e6)
    latent = layers * 2 * c.num_heads * pairs * (2 * c.kv_lora_rank + c.rope_dim) / 1e6
    tiles = Rates("amx", dram=1e30, ops=1e6, attention_ops=1e6)
    assert attention_cost(plan, tiles, None, 300, 212)[0] == pytest.approx(latent)
    monkeypatch.setenv("HYBRIDMOE_EXPAND", "0")
    assert attention_cost(plan, rates, None, 300, 212)[0] == pytest.approx(latent)


def test_a_prompt_shares_its_experts_out(k2: ModelSizes) -> None:
    """Longer steps stream the same bytes for more tokens."""
    plans = [plan_of(k2, 700, 24, step_tokens=n) for n in (512, 2048, 8192)]
    speeds = [prompt(plan, RATES, hits_of(plan), 32768).tokens_per_s for plan in plans]
    assert speeds[2] > 1.3 * speeds[1] > 1.6 * speeds[0]
    by_cpu = prompt(plans[2], replace(RATES, gpu=replace(GPU, pcie=1.0)), hits_of(plans[2]), 32768)
    assert by_cpu.tokens_per_s < speeds[2]


def test_the_cpu_computes_a_prompts_experts_where_they_are_pinned_to_it(k2: ModelSizes) -> None:
    alone = prompt(plan_of(k2, 700), replace(RATES, gpu=None), Hits(0, 1), 2048)
    pinned = ExpertLayers(cpu=frozenset(range(1, 61)))
    plan = plan_of(k2, 700, 24, layers=pinned)
    assert not plan.streams_experts
    found = prompt(plan, RATES, Hits(0, 1), 2048).seconds["experts"]
    assert found == pytest.approx(alone.seconds["experts"])
    assert plan_of(k2, 200, 48).streams_experts  # also from the disk
    half = ExpertLayers(cpu=frozenset(range(1, 31)))
    shared = prompt(plan_of(k2, 700, 24, layers=half), RATES, Hits(0, 1), 2048).seconds["experts"]
    with_gpu = prompt(plan_of(k2, 700, 24), RATES, Hits(0, 1), 2048).seconds["experts"]
    assert with_gpu < 0.9 * shared < 0.9 * alone.seconds["experts"]


def test_types_without_a_kernel_on_the_gpu_are_the_cpus(k2: ModelSizes) -> None:
    odd = replace(k2, experts=tuple((Part(Q.NVFP4, 1 << 20, 9 << 16),) for _ in k2.experts))
    plan = plan_of(odd, 700, 24)
    with_gpu = prompt(plan, RATES, Hits(0, 1), 2048).seconds["experts"]
    alone = prompt(plan_of(odd, 700), replace(RATES, gpu=None), Hits(0, 1), 2048)
    assert with_gpu == pytest.approx(alone.seconds["experts"])


def test_blocks_of_tokens_unpack_again(toy: ModelSizes) -> None:
    rates = rates_of("amx", dram=1e11, peak_ops=1e12)
    part = Part(Q.Q4_K, 1000, 0)
    one = rates.multiply_s(part, 96)
    assert rates.multiply_s(part, 960) == pytest.approx(10 * one)
    assert one > rates.multiply_s(part, 16) > one / 3
    assert rates.multiply_s(part._replace(type=Q.Q8_0), 16) > rates.multiply_s(part, 16)
    rows = rates.multiply_s(part._replace(num_rows=5), 96)
    assert rows == pytest.approx((1 + ROW_COLS / 200) * one), "columns besides a row's 200"


@given(ram=st.floats(14, 700), more=st.floats(0, 400), vram=st.sampled_from([0.0, 16.0, 96.0]))
def test_more_ram_never_predicts_slower(
    k2: ModelSizes, ram: float, more: float, vram: float
) -> None:
    before, after = plan_of(k2, ram, vram), plan_of(k2, ram + more, vram)
    slack = 0.002  # smaller buffers, of two sizes, let a prompt's reads run ahead less far
    if after.step_tokens > before.step_tokens and more < 1:
        slack = 0.02  # of their activations: some slots less
    slower = decode(before, RATES, hits_of(before), 2000).total_s
    assert decode(after, RATES, hits_of(after), 2000).total_s <= slower * (1 + slack)
    if after.step_tokens >= before.step_tokens:  # else it fits, so that steps are short again
        slower = prompt(before, RATES, hits_of(before), 700).total_s
        assert prompt(after, RATES, hits_of(after), 700).total_s <= slower * (1 + slack)


@given(small=st.floats(12, 96), more=st.floats(0, 100))
def test_more_vram_never_decodes_slower(k2: ModelSizes, small: float, more: float) -> None:
    before, after = plan_of(k2, 700, small), plan_of(k2, 700, small + more)
    slower = decode(before, RATES, hits_of(before), 2000).total_s
    assert decode(after, RATES, hits_of(after), 2000).total_s <= slower * (1 + 1e-9)


@pytest.mark.parametrize("name", ["dram", "ops", "attention_ops", "disk"])
@given(times=st.floats(1, 10))
def test_a_faster_part_never_predicts_slower(k2: ModelSizes, name: str, times: float) -> None:
    plan = plan_of(k2, 128)
    faster = replace(RATES, **{name: getattr(RATES, name) * times})
    for predict in (
        lambda rates: decode(plan, rates, hits_of(plan), 2000),
        lambda rates: prompt(plan, rates, hits_of(plan), 700),
    ):
        assert predict(faster).total_s <= predict(RATES).total_s * (1 + 1e-9)


@given(ram=st.floats(14, 700), vram=st.sampled_from([0.0, 24.0]), position=st.integers(0, 100_000))
def test_bytes_per_token_are_the_same_wherever_they_lie(
    k2: ModelSizes, ram: float, vram: float, position: int
) -> None:
    plan = plan_of(k2, ram, vram)
    step = decode(plan, RATES, hits_of(plan), position)
    chosen = sum(k2.expert_bytes) * 8
    row = k2.embedding_bytes / 163840
    whole = k2.dense_bytes + row + chosen + (position + 1) * 61 * 576 * 2
    assert sum(step.read_bytes.values()) == pytest.approx(whole)
    assert all(seconds >= 0 for seconds in step.seconds.values())


def test_uniform_routing_finds_the_share_that_is_held(k2: ModelSizes) -> None:
    plan = plan_of(k2, 200)
    assert hits_of(plan) == Hits(0, plan.num_ram_experts / plan.num_experts)
    both = plan_of(k2, 700, 48)
    assert hits_of(both).vram == both.num_vram_slots / both.num_experts > 0
    assert hits_of(all_in(k2)) == Hits(0, 1)


def test_hits_can_be_given(k2: ModelSizes) -> None:
    plan = plan_of(k2, 200, 48)
    assert plan.vram is not None and plan.needs_disk
    plan = replace(plan, vram=replace(plan.vram, num_experts=900))  # as no executor has it yet
    given_both = hits_of(plan, hit_rate=0.9, vram_rate=0.3)
    assert (given_both.vram, given_both.ram) == (0.3, pytest.approx(0.6))
    assert hits_of(plan, hit_rate=0.2, vram_rate=0.3) == Hits(0.2, 0)
    curve = {plan.num_vram_slots: 0.25, plan.num_vram_slots + plan.num_ram_experts: 0.75}
    assert hits_of(plan, curve.__getitem__) == Hits(0.25, 0.5)
    assert hits_of(all_in(k2), hit_rate=0.1) == Hits(0, 1)  # there is nothing to miss
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
            hits_of(plan, hit_rate=wrong)
    with pytest.raises(ConfigError, match="at most 1 together"):
        Hits(0.6, 0.6)


def test_a_disk_of_unknown_speed_is_asked_for_where_it_is_read(k2: ModelSizes) -> None:
    rates = replace(RATES, disk=None)
    plan = plan_of(k2, 200)
    with pytest.raises(ConfigError, match="give --disk-gbs"):
        decode(plan, rates, hits_of(plan), 0)
    assert decode(all_in(k2), rates, Hits(0, 1), 0).total_s > 0
    with pytest.raises(ConfigError, match="a prompt of 0 tokens"):
        prompt(plan, RATES, hits_of(plan), 0)


def test_a_gpu_copies_a_prompts_experts_only_where_that_is_faster(k2: ModelSizes) -> None:
    plan = plan_of(k2, 700, 24)
    slow_link = replace(RATES, gpu=replace(GPU, pcie=1e6))
    fast_link = replace(RATES, gpu=replace(GPU, pcie=1e12))
    by_cpu = prompt(plan, slow_link, hits_of(plan), 512).seconds["experts"]
    by_gpu = prompt(plan, fast_link, hits_of(plan), 512).seconds["experts"]
    assert by_gpu < prompt(plan, RATES, hits_of(plan), 512).seconds["experts"] < by_cpu * 1.001


def test_sparse_attention_costs_top_k_positions_and_their_choice() -> None:
    plans = {}
    for name in ("glm-5", "glm-5.2"):
        release = release_named(name)
        assert release is not None
        outline = outline_of(release.metadata, "Q4_0")
        plans[name] = plan_of(sizes_of(outline.tensors, outline.config), 10**12)
    c = plans["glm-5.2"].problem.sizes.config
    assert c.indexer is not None
    attended = 2 * 78 * 2048 * c.num_heads * (2 * c.kv_lora_rank + c.rope_dim)
    scored = {"glm-5": 78, "glm-5.2": 21}
    for name, plan in plans.items():
        seconds, read = attention_cost(plan, RATES, None, 1, 32_767)
        scoring = 2 * scored[name] * 32_768 * 32 * 128
        loading = attended * 9 / c.num_heads
        assert seconds == pytest.approx((attended + loading + scoring) / RATES.attention_ops)
        keys = 2 * scored[name] * 32_768 * 128
        assert read == 2 * 78 * 2048 * 576 + keys
        short, read = attention_cost(plan, RATES, None, 4, 2_044)
        assert short == pytest.approx(attended * 4 * (2_046.5 / 2048) / RATES.attention_ops)
        assert read == 2_048 * plan.kv.token_bytes

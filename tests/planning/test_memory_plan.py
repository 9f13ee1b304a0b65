"""Plans: nothing is placed twice or beyond a budget; GPUs from 8 to 96 GB on K2's real sizes."""

import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from k2_header import k2_tensors, write_k2
from memory_plans import plan_of as plan
from tiny_gguf import write_tiny

from hybridmoe.config import EngineConfig
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import read_outline, with_expert_type
from hybridmoe.planning.memory_plan import RAM_RESERVE_BYTES, plan_memory
from hybridmoe.planning.model_sizes import GPU_EXPERT_TYPES, GPU_TYPES, ModelSizes, sizes_of
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan, Tier
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.step_plan import activation_bytes
from hybridmoe.planning.vram_plan import SCRATCH_BYTES

GIB = 1 << 30
K2_TOKEN_KV = 61 * 576 * 2  # f16
TOTAL = 60 * 384


def _row_bytes(kind: Type, cols: int) -> int:
    weights, block_bytes = GGML_QUANT_SIZES[kind]
    return cols // weights * block_bytes


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    path: Path = tmp_path_factory.mktemp("k2") / "k2.gguf"
    outline = read_outline(write_k2(path))
    return sizes_of(outline.tensors, outline.config)


@pytest.fixture(scope="module")
def k2_in_q8_0(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    """Its experts in Q4_K, all else of two dimensions in Q8_0 but for the router."""
    outline = read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))
    tensors = [
        t
        if t.type == Type.F32 or "_exps" in t.name
        else replace(t, type=Type.Q8_0, num_bytes=prod(t.shape) // 32 * 34)
        for t in outline.tensors
    ]
    return sizes_of(tensors, outline.config)


def test_kimi_k2s_sums_are_those_worked_out_by_hand(k2: ModelSizes) -> None:
    q4, q6 = 7168 * 2048 * 144 // 256, 7168 * 2048 * 210 // 256
    better = 6 + 15 + 8  # MoE layers 1-6, 9, 12 ... 51, 53-60
    assert k2.slot_bytes == 2 * q4 + q6
    assert sorted(k2.expert_bytes) == [3 * q4] * (60 - better) + [2 * q4 + q6] * better
    assert k2.working_set == 480
    assert k2.embedding_bytes == 163840 * 7168 * 144 // 256
    assert k2.total_bytes == pytest.approx(621e9, rel=0.01)  # the published Q4_K_M files


@given(
    ram=st.floats(0.5, 800), vram=st.one_of(st.just(0.0), st.floats(0.5, 200)),
    tokens=st.integers(1, 131072),
)  # fmt: skip
def test_no_budget_is_exceeded_and_every_expert_is_somewhere_once(
    k2: ModelSizes, ram: float, vram: float, tokens: int
) -> None:
    try:
        found = plan(k2, ram, vram, tokens)
    except ConfigError as error:
        assert re.match(r"(RAM|VRAM): [0-9.]+ GiB are needed \(", str(error))
        assert "\n" not in str(error)
        return
    if found.shortage is not None:
        assert re.match(r"RAM: [0-9.]+ [GM]iB are needed \(", found.shortage)
        assert "\n" not in found.shortage and found.disk_cache is None
        return
    tiers: list[Tier] = [found.ram, *([found.vram] if found.vram else [])]
    for tier in tiers:
        assert tier.used_bytes == sum(size for _, size in tier.parts) + tier.expert_bytes
        assert 0 <= tier.used_bytes <= tier.budget_bytes
        assert tier.free_bytes == tier.budget_bytes - tier.used_bytes
    in_memory = sum(tier.num_experts for tier in tiers)
    assert in_memory + found.num_disk_experts == TOTAL
    placed = [what for tier in tiers for what, _ in tier.parts]
    for what in ("weights that every token uses", "activations", "embedding"):
        assert placed.count(what) == 1
    cache = found.disk_cache
    assert (cache is not None) == found.needs_disk
    if cache is not None:  # not one more slot would have fitted
        assert found.ram.free_bytes < cache.buffer_bytes == k2.buffer_bytes > k2.slot_bytes
        streamed = [
            max(8, min(384, (pool.num_buffers - pool.num_aside) // 16)) for pool in cache.pools
        ]
        assert [pool.num_staging for pool in cache.pools] == streamed
        assert ("streamed experts", cache.staging_bytes) in found.ram.parts
        leaving = len(cache.pools) * cache.num_leaving
        assert cache.num_buffers == found.num_ram_experts + sum(streamed) + leaving
        assert cache.num_leaving == (14 if found.num_vram_slots else 0)
        between = cache.num_leaving * cache.one_of_each_bytes
        assert ("experts between RAM and VRAM", between) in found.ram.parts
        assert found.streams_experts == (vram > 0)


@given(low=st.floats(14, 700), more=st.floats(0, 300))
def test_more_ram_never_holds_fewer_experts(k2: ModelSizes, low: float, more: float) -> None:
    before, after = plan(k2, low), plan(k2, low + more)
    slack = 0
    if after.step_tokens > before.step_tokens:  # at a bound, longer steps cost some slots
        slack = 2 * (1 << 28) // k2.buffer_bytes
    assert before.num_ram_experts <= after.num_ram_experts + slack


@pytest.mark.parametrize("vram", [8, 12, 16, 24, 32, 48, 96])
def test_cards_from_8_to_96_gb(k2: ModelSizes, vram: int) -> None:
    padding = {(Type.Q6_K, 7168): 8, (Type.Q8_0, 128): 8}  # a row's, to multiples of 16 bytes
    core = sum(
        prod(shape[:-1]) * (_row_bytes(type, shape[-1]) + padding.get((type, shape[-1]), 0))
        for name, shape, type in k2_tensors()
        if "_exps" not in name and name != "token_embd.weight"
    )
    per_token = 3 * 7168 + 1536 + 64 * (192 + 2 * 512 + 128) + 2 * 8 * 2048 + 2 * 2048 + 7168
    activations = 4 * (512 * per_token + 8 * 163840)
    # A reserve, graphs, decoded weights and expanded keys, experts that pass by.
    num_streamed = {8: 4, 12: 5, 16: 11}.get(vram, 12)
    other = GIB + (256 << 20) + (512 << 20) + num_streamed * k2.slot_bytes
    left = vram * GIB - core - 32768 * K2_TOKEN_KV - activations - other
    if vram == 8:
        assert left < 0
        with pytest.raises(ConfigError, match=r"VRAM: 1[01]\.\d+ GiB are needed"):
            plan(k2, 700, vram)
        return
    found = plan(k2, 700, vram)
    slots = left // k2.slot_bytes
    assert found.num_vram_slots == slots > 0
    assert found.num_vram_slots + found.num_ram_experts == TOTAL and not found.needs_disk
    assert found.streams_experts
    assert any("VRAM" in said for said in found.warnings) == (slots < 480) == (vram < 24)
    assert found.working_set_ratio(slots) == slots / 480
    assert found.slots_per_layer(slots) == slots / 60


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24, 32, 48, 96])
def test_every_card_gets_a_plan_that_adds_up_or_one_line_where_the_dense_part_is_q8_0(
    k2_in_q8_0: ModelSizes, gigabytes: int
) -> None:
    free = gigabytes * 0.97  # of its GiB, the driver and a screen take some
    try:
        found = plan(k2_in_q8_0, 700, free)
    except ConfigError as error:
        assert gigabytes in (8, 12)
        raise_to = re.search(r"raise --vram to ([0-9.]+)GiB", str(error))
        assert raise_to is not None and "\n" not in str(error)
        assert plan(k2_in_q8_0, 700, float(raise_to[1])).vram is not None
        leave = re.search(r"pin ([0-9.]+)GiB of weights to the CPU", str(error))
        assert leave is not None
        left = int(float(leave[1]) * GIB)
        smaller = replace(k2_in_q8_0, gpu_bytes=k2_in_q8_0.gpu_bytes - left, cpu_bytes=left)
        assert plan(smaller, 700, free).vram is not None
        return
    assert gigabytes >= 16 and found.vram is not None
    parts = dict(found.vram.parts)
    assert parts["weights that every token uses"] == k2_in_q8_0.gpu_bytes > 10.2 * GIB
    assert parts["KV cache of 32768 tokens"] == 32768 * K2_TOKEN_KV
    slots = found.num_vram_slots * found.problem.sizes.slot_bytes
    assert sum(parts.values()) + slots + found.vram.free_bytes == int(free * GIB)
    assert found.num_vram_slots > 0 and found.vram.free_bytes < found.problem.sizes.slot_bytes


def test_what_has_no_kernel_on_a_card_is_twice_as_large_there_and_experts_have_no_slots(
    tmp_path: Path,
) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    plain = sizes_of(outline.tensors, outline.config)
    tensors = [
        replace(t, type=Type.NVFP4) if t.name == "blk.0.attn_output.weight" else t
        for t in with_expert_type(outline.tensors, "NVFP4")
    ]
    sizes = sizes_of(tensors, outline.config)
    (moved,) = (t for t in outline.tensors if t.name == "blk.0.attn_output.weight")
    assert sizes.gpu_bytes - plain.gpu_bytes == 2 * prod(moved.shape) - moved.num_bytes
    found = plan(sizes, 700, 24)
    assert found.num_vram_slots == 0
    assert any("NVFP4 has no kernel for a GPU" in said for said in found.warnings)


def test_tensors_left_to_the_cpu_are_counted_there(tmp_path: Path) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    sizes = sizes_of(outline.tensors, outline.config, lambda name: "shexp" in name)
    assert sizes.cpu_bytes == sum(t.num_bytes for t in outline.tensors if "shexp" in t.name)
    everything = sizes_of(outline.tensors, outline.config)
    assert sizes.gpu_bytes + sizes.cpu_bytes == everything.gpu_bytes
    assert ("weights pinned to the CPU", sizes.cpu_bytes) in plan(sizes, 700, 24).ram.parts


def test_experts_that_are_to_stay_on_a_card_have_to_fit(k2: ModelSizes, tmp_path: Path) -> None:
    two, many = (ExpertLayers(frozenset(range(1, 1 + n))) for n in (1, 10))
    assert plan(k2, 700, 24, layers=two).num_vram_slots >= 384
    with pytest.raises(ConfigError, match=r"3840 experts .* (\d+) fit: .* raise --vram by"):
        plan(k2, 700, 24, layers=many)
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    low = sizes_of(with_expert_type(outline.tensors, "NVFP4"), outline.config)
    with pytest.raises(ConfigError, match=r"NVFP4 has no kernel for a GPU.*; place no experts"):
        plan(low, 700, 24, layers=two)
    assert plan(k2, 200, 24, layers=two).num_vram_slots >= 384  # over disk, too


def test_a_prompt_of_128k_has_room_for_what_is_decoded_and_expanded() -> None:
    product = pytest.importorskip("hybridmoe.kernels.triton.matmul")
    attention = pytest.importorskip("hybridmoe.kernels.triton.prefill_attention")
    kv_bytes = 131072 * 576 * 2  # of one layer of K2
    assert product.SLAB_BYTES + attention.EXPANDED_BYTES + kv_bytes <= SCRATCH_BYTES


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_a_slot_has_room_for_packed_rows(tmp_path: Path, kind: Type) -> None:
    experts = pytest.importorskip("hybridmoe.kernels.triton.expert_ffn")
    sizes = {"hidden": 96, "expert_width": 32}  # rows of 102 and 34 bytes in Q8_0
    write_tiny(tmp_path / "m.gguf", type=kind, **sizes)
    outline = read_outline(tmp_path / "m.gguf")
    found = sizes_of(outline.tensors, outline.config)
    layout = experts.SlotLayout(kind, kind, kind, 96, 32).packed
    bytes = 2 * 32 * layout.gate_row_bytes + 96 * layout.down_row_bytes
    assert found.slot_bytes == bytes
    assert (found.slot_bytes > sum(found.piece_bytes)) == (kind != Type.Q4_1)


def test_the_planner_knows_the_cards_types() -> None:
    matrix = pytest.importorskip("hybridmoe.kernels.triton.matrix")
    assert frozenset(matrix.TYPES) == GPU_EXPERT_TYPES
    assert frozenset(matrix.MATRIX_TYPES) == GPU_TYPES


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q6_K])
def test_rows_are_as_long_as_in_vram(kind: Type, tmp_path: Path) -> None:
    matrix = pytest.importorskip("hybridmoe.kernels.triton.matrix")
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    head = next(t for t in outline.tensors if t.name == "output.weight")
    rows, cols = head.shape

    def gpu_bytes(kind: Type, num_bytes: int) -> int:
        new = replace(head, type=kind, num_bytes=num_bytes)
        tensors = [new if t is head else t for t in outline.tensors]
        return sizes_of(tensors, outline.config).gpu_bytes

    num_bytes = rows * _row_bytes(kind, cols)
    padded = matrix.DeviceMatrix.empty(kind, (1, rows, cols), "meta").data.numel()
    assert (padded > num_bytes) == (kind == Type.Q6_K)
    others = gpu_bytes(Type.F16, 2 * rows * cols) - 2 * rows * cols
    assert gpu_bytes(kind, num_bytes) == others + padded


def test_a_refusal_says_what_to_lower_and_by_how_much(k2: ModelSizes) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(k2, 700, 12, 131072)
    text = str(refused.value)
    match = re.search(r"lower --ctx to (\d+), which frees ([0-9.]+) GiB", text)
    assert match is not None, text
    tokens = int(match[1])
    assert tokens % 64 == 0
    assert float(match[2]) == pytest.approx((131072 - tokens) * K2_TOKEN_KV / GIB, abs=0.006)
    assert plan(k2, 700, 12, tokens).num_vram_slots == 0
    with pytest.raises(ConfigError):
        plan(k2, 700, 12, tokens + 64)
    match = re.search(r"raise --vram to ([0-9.]+)GiB", text)
    assert match is not None, text
    assert plan(k2, 700, float(match[1]), 131072).num_vram_slots == 0
    with pytest.raises(ConfigError):
        plan(k2, 700, float(match[1]) - 0.02, 131072)
    assert "use --device cpu" in text


def test_a_kv_cache_that_was_given_is_to_be_lowered_itself(tmp_path: Path) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    budgets = Budgets(ram_bytes=700 * GIB, vram_bytes=24 * GIB)
    for context, option in ((32768, "--kv-tokens"), (262144, "--ctx and --kv-tokens")):
        engine = EngineConfig(context_tokens=context, kv_tokens=1 << 20)
        with pytest.raises(ConfigError, match=rf"lower {option} to \d+, which frees"):
            plan_memory(outline.config, outline.tensors, engine, budgets)


def test_what_no_context_would_help_is_not_told_to_lower_it(k2: ModelSizes) -> None:
    found = plan(k2, 2)
    assert found.shortage is not None and found.disk_cache is None
    assert "--ctx" not in found.shortage
    needed = re.search(r"have ([0-9.]+)GiB of RAM free$", found.shortage)
    assert needed is not None, found.shortage
    assert plan(k2, float(needed[1])).shortage is None
    assert plan(k2, float(needed[1]) - 0.02).shortage is not None
    assert found.warnings == (f"{found.shortage}. The system pages.",)


def test_ram_below_a_tokens_working_set_is_warned_of(k2: ModelSizes) -> None:
    (said,) = plan(k2, 16).warnings
    assert said.startswith("RAM: ") and "480 experts that one token" in said
    assert not plan(k2, 64).warnings
    assert not plan(k2, 700).warnings and not plan(k2, 700).needs_disk


def test_steps_over_the_disk_are_long(k2: ModelSizes) -> None:
    assert plan(k2, 700).step_tokens == plan(k2, 700, 80).step_tokens == 512
    assert plan(k2, 128).step_tokens == plan(k2, 128, 80).step_tokens == 8192
    # Not where a budget that was given leaves no memory for their activations.
    given = {"expert_ram_bytes": 48 * GIB}
    short = plan(k2, 200, **given)
    needed = short.ram.used_bytes - dict(short.ram.parts)["activations"]
    assert short.step_tokens > 512
    assert plan(k2, (needed + (1 << 29)) / GIB, **given).step_tokens == 512


def test_quick_steps_take_no_memory_that_the_plan_lacks() -> None:
    outline = read_outline(demo_path())
    engine = EngineConfig(context_tokens=2048)

    def found(ram_bytes: int) -> Plan:
        return plan_memory(outline.config, outline.tensors, engine, Budgets(ram_bytes=ram_bytes))

    ample = found(64 * GIB)
    assert (ample.step_tokens, ample.engine.quick_chunk_tokens) == (512, 2048)
    assert ample.max_step_tokens >= 2048
    activations = activation_bytes(outline.config, 2048, on_cpu=True)
    assert dict(ample.ram.parts)["activations"] == activations
    scarce = found(ample.ram.used_bytes - 1)
    assert scarce.engine.quick_chunk_tokens == 0 and scarce.disk_cache is None
    assert dict(scarce.ram.parts)["activations"] < activations


def test_ram_for_experts_is_what_was_given(k2: ModelSizes) -> None:
    given = 64 * GIB
    found = plan(k2, 200, expert_ram_bytes=given, num_ahead=3)
    cache = found.disk_cache
    assert cache is not None and cache.num_ahead == 3
    assert [pool.num_staging for pool in cache.pools] == [77, 83]
    assert given - cache.buffer_bytes < cache.num_bytes <= given
    assert found.num_ram_experts == cache.num_slots == found.num_experts - found.num_disk_experts
    assert dict(found.ram.parts)["reserve"] == RAM_RESERVE_BYTES
    # Beside VRAM, it is for the others: both add up.
    tiers = plan(k2, 700, 80, expert_ram_bytes=given)
    assert tiers.disk_cache is not None and tiers.disk_cache.num_leaving == 14
    aside = tiers.disk_cache.num_staging + 2 * 14  # of each of two sizes, and none for hints
    assert tiers.num_ram_experts == tiers.disk_cache.num_buffers - aside
    in_memory = tiers.num_vram_slots + tiers.num_ram_experts
    assert tiers.num_vram_slots > 2000 and in_memory + tiers.num_disk_experts == TOTAL
    whole = plan(k2, 700, 80)  # with more slots, since its steps are shorter
    rest = k2.all_expert_bytes * (TOTAL - whole.num_vram_slots) // TOTAL
    assert plan(k2, 700, 80, expert_ram_bytes=rest).disk_cache is None
    assert plan(k2, 700, 80, expert_ram_bytes=rest - 1).disk_cache is not None
    mapped = plan(k2, 200, expert_ram_bytes=k2.all_expert_bytes)  # more than there is: paged
    assert mapped.disk_cache is None and "experts 5" in (mapped.shortage or "")
    tight = plan(k2, 74, expert_ram_bytes=given)  # takes the reserve up
    assert tight.num_ram_experts == plan(k2, 200, expert_ram_bytes=given).num_ram_experts
    assert 0 <= dict(tight.ram.parts)["reserve"] < RAM_RESERVE_BYTES
    core = sum(size for part, size in tight.ram.parts[:4])
    assert tight.disk_cache is not None
    full = plan(k2, (tight.disk_cache.num_bytes + core) / GIB, expert_ram_bytes=given)
    assert full.ram.free_bytes == 0 == dict(full.ram.parts)["reserve"]
    with pytest.raises(ConfigError, match=r"of other weights, KV cache and activations .* are fr"):
        plan(k2, (full.ram.budget_bytes - 1) / GIB, expert_ram_bytes=given)
    with pytest.raises(ConfigError, match=r"at least .* layer's 8 experts and 3 read ahead take"):
        plan(k2, 200, expert_ram_bytes=10 * k2.buffer_bytes, num_ahead=3)


def test_a_gpu_that_is_optional_and_too_small_is_left_out(tmp_path: Path) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    engine = EngineConfig(context_tokens=131072)
    budgets = Budgets(ram_bytes=700 * GIB, vram_bytes=12 * GIB)
    with pytest.raises(ConfigError, match=r"^VRAM: .* lower --ctx to \d+"):
        plan_memory(outline.config, outline.tensors, engine, budgets)
    budgets = replace(budgets, is_gpu_optional=True)
    found = plan_memory(outline.config, outline.tensors, engine, budgets)
    (note,) = found.notes
    assert found.vram is None and note.startswith("on the CPU alone: VRAM: ")
    assert found.engine.chunk_tokens == engine.chunk_tokens


def test_a_kv_cache_by_default_is_an_eighth_but_no_more_than_fits(tmp_path: Path) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf"))
    engine = EngineConfig(context_tokens=8192)
    for vram, tokens in ((80, 65536), (24, 3 * GIB // K2_TOKEN_KV // 64 * 64), (10, 8192)):
        budgets = Budgets(ram_bytes=700 * GIB, vram_bytes=vram * GIB)
        found = plan_memory(outline.config, outline.tensors, engine, budgets)
        assert found.kv.num_tokens == found.engine.kv_tokens == tokens
    ram = plan_memory(outline.config, outline.tensors, engine, Budgets(ram_bytes=97 * GIB // 10))
    assert ram.kv.num_tokens == 8192 and ram.shortage is None


@pytest.mark.parametrize("field", ["ram_bytes", "vram_bytes", "expert_ram_bytes", "num_ahead"])
def test_numbers_below_zero_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=-1"):
        Budgets(**{"ram_bytes": 1, field: -1})

"""Equality of plan and load: both do the same with the same options and the same memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Type
from k2_header import write_k2
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.cli.plan import plan_command
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.llm import load as loading
from hybridmoe.placement.budgets import plan_for
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.memory_plan import RAM_RESERVE_BYTES, plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets

GIB = 1 << 30
RATES = ("--dram-gbs", "200", "--tops", "10", "--disk-gbs", "7")
GPU_RATES = ("--vram-gbs", "1000", "--gpu-tflops", "165", "--pcie-gbs", "31.5")
NO_GPU = NoGpu("the CPU was asked for", is_silent=True)


def printed(path: Path, *arguments: str) -> dict[str, Any]:
    """The plan of `plan --json`. Errors: ConfigError."""
    command = [str(path), *RATES, "--prompt-tokens", "20", "--answer-tokens", "9", "--json"]
    done = CliRunner().invoke(plan_command, [*command, *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    plan: dict[str, Any] = json.loads(done.output)["plan"]
    return plan


def refused_or(function: Any) -> Any:
    try:
        return function()
    except ConfigError as error:
        return str(error)


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    return read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))


@pytest.mark.parametrize("vram", [0, 12, 24, 80])
@pytest.mark.parametrize("ram", [8, 16, 64, 128, 512, 1024])
@pytest.mark.parametrize("options", [{}, {"context_tokens": 32768, "expert_ram": "48GiB"}])
def test_kimi_k2_is_planned_as_load_plans_it(
    k2: Outline, ram: int, vram: int, options: Mapping[str, Any]
) -> None:
    gpu = (CudaGpu(0, "GPU", (9, 0), vram * GIB, vram * GIB),) if vram else NO_GPU
    flags = ["--ram", f"{ram}GiB", *(GPU_RATES if vram else ("--device", "cpu"))]
    asked = LoadOptions(**options, **({"vram": vram * GIB} if vram else {"device": "cpu"}))
    flags += ["--vram", f"{vram}GiB"] if vram else []
    flags += ["--ctx", "32768", "--expert-ram", "48GiB"] if options else []

    def as_load_does() -> dict[str, Any]:
        plan = plan_for(k2.config, k2.tensors, asked, gpu, ram * GIB)
        if plan.shortage is not None:
            raise ConfigError(plan.shortage)
        return plan.facts()

    found, want = refused_or(lambda: printed(k2.path, *flags)), refused_or(as_load_does)
    if isinstance(want, str):  # the command line names its own option
        want = want.replace("expert_ram=", "--expert-ram ")
    assert found == want
    if isinstance(want, str):
        assert want.startswith(("RAM: ", "VRAM: ", "--expert-ram "))
        assert ram <= 64 or vram == 12
        return
    assert want["num_vram_slots"] + want["num_ram_experts"] + want["num_disk_experts"] == 60 * 384
    has_all = ram == 1024 and not options
    assert (want["num_disk_experts"] == 0) == has_all
    assert (want["num_vram_slots"] > 0) == (vram > 0)
    assert want["prompt_experts_on"] == ("gpu" if vram > 0 else "cpu")
    if want["disk_cache"] is not None:
        assert want["disk_cache"]["num_leaving"] == (14 if vram else 0)


SIZES = {**SMALL, "experts": 8, "expert_width": 256, "q_lora": 64, "context": 256, "layers": 3}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    write_tiny(path, type={"default": Type.F32, "ffn_up_exps": Type.Q8_0}, **SIZES)
    return path


@pytest.fixture(scope="module")
def in_gpu_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    write_tiny(path, type=Type.Q8_0, **{**SIZES, "expert_width": 1024})
    return path


def set_memory(monkeypatch: pytest.MonkeyPatch, ram_bytes: int, gpu: CudaGpu | NoGpu) -> None:
    """Let this machine have so much free."""
    monkeypatch.setattr("hybridmoe.placement.budgets.available_bytes", lambda: ram_bytes)
    gpus = gpu if isinstance(gpu, NoGpu) else (gpu,)
    monkeypatch.setattr("hybridmoe.cli.plan_rates.choose_gpus", lambda wanted: gpus)
    monkeypatch.setattr(loading, "choose_gpus", lambda wanted: gpus)


def whole(path: Path, gpu_bytes: int = 0) -> Plan:
    """A plan with memory for everything, whose parts are the base of budgets."""
    outline = read_outline(path)
    engine = LoadOptions().engine_config(outline.config)
    budgets = Budgets(ram_bytes=1 << 40, vram_bytes=gpu_bytes)
    return plan_memory(outline.config, outline.tensors, engine, budgets)


def check_obeyed(llm: hybridmoe.LLM, found: Mapping[str, Any]) -> None:
    """The plan that was printed is the loaded model's, and what runs is what it says."""
    assert llm.plan.facts() == found
    kv, engine = llm.engine.kv_plan, llm.engine.config
    assert (found["kv_tokens"], found["kv_pages"]) == (kv.num_tokens, kv.num_pages)
    assert found["kv_bytes"] == kv.num_bytes
    assert llm.engine.stats().kv_pages_total == found["kv_pages"]
    assert (found["kv_tokens"], found["step_tokens"]) == (engine.kv_tokens, engine.chunk_tokens)
    total = SIZES["experts"] * (SIZES["layers"] - 1)
    in_memory = found["num_vram_slots"] + found["num_ram_experts"]
    assert in_memory + found["num_disk_experts"] == total
    stats, cache = llm.expert_stats(), found["disk_cache"]
    tiers = {tier.place: tier for tier in stats.tiers} if stats is not None else {}
    assert ("VRAM" in tiers) == (found["num_vram_slots"] > 0) and ("RAM" in tiers) == bool(cache)
    if "VRAM" in tiers:
        assert tiers["VRAM"].num_slots == found["num_vram_slots"]
    if "RAM" in tiers:
        assert tiers["RAM"].num_slots == cache["num_slots"] == found["num_ram_experts"]
        assert tiers["RAM"].buffer_bytes == cache["buffer_bytes"]
        own = llm._residency.disk_cache
        assert own is not None
        kinds = ("num_slots", "num_staging", "num_ahead", "num_leaving")
        assert own.buffers_free + own.buffers_in_use == sum(cache[kind] for kind in kinds)


@pytest.mark.parametrize(
    ("num_buffers", "options", "num_ram_experts"),
    [
        (None, {}, 16),
        (5, {}, 3),
        (9, {"expert_prefetch": 3}, 4),
        (9, {"kv_tokens": 192, "context_tokens": 128}, 7),
    ],
)
def test_a_small_model_on_the_cpu_is_where_the_plan_has_it(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_buffers: int | None,
    options: dict[str, Any],
    num_ram_experts: int,
) -> None:
    names = {"expert_prefetch": "--expert-prefetch", "kv_tokens": "--kv-tokens"}
    names["context_tokens"] = "--ctx"
    outline, engine = read_outline(path), LoadOptions(**options)
    budgets = Budgets(ram_bytes=1 << 40)
    base = plan_memory(
        outline.config, outline.tensors, engine.engine_config(outline.config), budgets
    )
    buffers = 0 if num_buffers is None else num_buffers * base.problem.sizes.buffer_bytes
    ram = sum(size for _, size in base.ram.parts) + (buffers or base.ram.expert_bytes)
    set_memory(monkeypatch, ram, NO_GPU)
    flags = [text for name, value in options.items() for text in (names[name], str(value))]
    found = printed(path, *flags)
    assert found["num_ram_experts"] == num_ram_experts
    assert found["tiers"]["RAM"]["budget_bytes"] == ram
    with hybridmoe.load(path, **options) as llm:
        check_obeyed(llm, found)


def test_ram_for_experts_that_was_given_is_what_load_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, 4 * GIB, NO_GPU)
    given = str(7 * whole(path).problem.sizes.buffer_bytes + 100)
    found = printed(path, "--expert-ram", given)
    assert found["num_ram_experts"] == 5
    with hybridmoe.load(path, expert_ram=given) as llm:
        check_obeyed(llm, found)


def test_too_little_ram_is_refused_by_plan_and_said_by_load(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, RAM_RESERVE_BYTES, NO_GPU)
    with pytest.raises(ConfigError, match="RAM: ") as refused:
        printed(path)
    with hybridmoe.load(path) as llm:
        assert llm.plan.shortage == str(refused.value)
        assert llm.notes == (f"warning: {refused.value}. The system pages.",)


@pytest.mark.parametrize("options", [{}, {"place"}, {"vram"}, {"expert_ram"}], ids=str)
@pytest.mark.parametrize("is_ram_short", [False, True])
def test_a_small_model_on_a_gpu_is_where_the_plan_has_it(
    in_gpu_types: Path, monkeypatch: pytest.MonkeyPatch, options: set[str], is_ram_short: bool
) -> None:
    interpreted_gpu = pytest.importorskip("interpreted_gpu", reason="needs triton")
    interpreted_gpu.use_gpu(monkeypatch)
    plan = whole(in_gpu_types, 4 * GIB)
    assert plan.vram is not None
    sizes, base = plan.problem.sizes, sum(size for _, size in plan.vram.parts)
    given = {
        "place": r"blk\.1\..*exps=cpu",
        "vram": f"{(base + 3 * sizes.slot_bytes) // 1024}KiB",
        "expert_ram": f"{7 * sizes.buffer_bytes // 1024}KiB",
    }
    gpu = CudaGpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, base + 5 * sizes.slot_bytes)
    ram = RAM_RESERVE_BYTES + sizes.embedding_bytes + 7 * sizes.buffer_bytes
    set_memory(monkeypatch, ram if is_ram_short else 8 * GIB, gpu)
    flags = [text for name in options for text in (f"--{name.replace('_', '-')}", given[name])]
    found = printed(in_gpu_types, *flags, *(GPU_RATES if "vram" in options else ()))
    is_cached = is_ram_short or "expert_ram" in options
    assert found["num_vram_slots"] == (2 if "vram" in options else 5)
    assert found["prompt_experts_on"] == "gpu"
    assert (found["num_disk_experts"] > 0) == is_cached == (found["disk_cache"] is not None)
    # Two buffers are for a token's experts, two for those between RAM and VRAM.
    assert not is_cached or found["num_ram_experts"] == 3
    chosen = {name: given[name] for name in options}
    if "place" in options:
        chosen["place"] = [given["place"]]
    with hybridmoe.load(in_gpu_types, **chosen) as llm:
        check_obeyed(llm, found)

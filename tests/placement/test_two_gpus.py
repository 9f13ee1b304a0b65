"""`load` with two GPUs: the whole program; interpreted ones check that no tensor strays."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from logit_distance import relative_error
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.errors import ConfigError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.gpu.staged_experts import StagedExperts

pytest.importorskip("triton", reason="needs triton")

from two_gpus import Ledger, use_two_gpus

from hybridmoe.experts.gpu.calibrate_decode import DecodeRates
from hybridmoe.placement import gpu as gpu_placement
from hybridmoe.placement.gpu_runtime import Measured

IDS = np.random.default_rng(3).integers(0, 256, 6).tolist()
NUM_EXPERTS = 2 * SMALL["experts"]
BOTH: dict[str, Any] = {"device": "cuda:0,cuda:1", "vram": "2GiB,2GiB", "context_tokens": 128}
ONE: dict[str, Any] = {"device": "cuda:0", "vram": "2GiB", "context_tokens": 128}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpus") / "m.gguf"
    types = {"default": Type.F32} | {
        f"ffn_{part}_exps": Type.Q8_0 for part in ("gate", "up", "down")
    }
    write_tiny(path, type=types, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    return path


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    return use_two_gpus(monkeypatch)


def generated(llm: hybridmoe.LLM, num_tokens: int) -> list[int]:
    text = llm.tokenizer.decode(IDS, skip_special=False)
    return llm.generate(text, temperature=0.0, max_tokens=num_tokens, ignore_eos=True).token_ids


def test_logits_and_answers_are_those_of_one_gpu(path: Path, ledger: Ledger) -> None:
    """With the experts left to the CPU: what is in VRAM is rounded otherwise. Graphs included."""
    found = []
    for options in (ONE, BOTH):
        ledger.crossings.clear()
        with hybridmoe.load(path, place=["exps=cpu"], **options) as llm:
            found.append((llm.logits(IDS), generated(llm, 5)))
            assert isinstance(llm.experts, StagedExperts) == (options is BOTH)
            lines = [note for note in llm.notes if "VRAM;" in note]
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert [line.split(";")[0] for line in lines] == ["RTX 4090: layers 0-1", "RTX 3060: layers 2"]
    hidden = [shape for shape in ledger.crossings if shape[-1] == SMALL["hidden"]]
    # The logits' prompt, five steps, and the capture of a graph.
    assert not ledger.gpus or len(hidden) == 1 + 5 + 1


def test_each_gpu_has_the_experts_of_its_layers(path: Path, tmp_path: Path) -> None:
    profile = tmp_path / "hot.json"
    with hybridmoe.load(path, expert_profile=profile, **BOTH) as llm:
        ids = generated(llm, 6)
        stats = llm.expert_stats()
        assert isinstance(llm.experts, StagedExperts)
        by_gpu = [stage.backend.stats() for stage in llm.experts._stages]
        times = llm.experts.host_call_times()
        plan = llm.plan
    assert stats is not None and len(ids) == 6
    assert stats.num_slots == plan.num_vram_slots == NUM_EXPERTS == stats.num_experts
    assert [s.num_slots for s in by_gpu if s] == [SMALL["experts"]] * 2
    assert stats.counters.hits == sum(s.counters.hits for s in by_gpu if s) > 0
    assert all(s.counters.hits > 0 for s in by_gpu if s)
    assert sorted({time.layer for time in times}) == [1, 2]
    with hybridmoe.load(path, expert_profile=profile, **BOTH) as llm:
        again = llm.expert_stats()
        assert len(generated(llm, 2)) == 2
    assert again is not None and again.num_resident >= stats.num_resident


def test_a_prompts_experts_are_computed_on_the_gpu_of_their_layer(path: Path) -> None:
    ids = np.random.default_rng(5).integers(0, 256, 20).tolist()
    found = []
    for options in (ONE, BOTH):
        with hybridmoe.load(path, **options) as llm:
            found.append(llm.logits(ids))
            assert llm.plan.streams_experts
    assert relative_error(*found) < 0.01


@pytest.mark.parametrize(("slow", "fast"), [(0, "RTX 3060"), (1, "RTX 4090")])
def test_load_says_which_gpu_is_faster_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, slow: int, fast: str
) -> None:
    """By rates as they are measured, not by names."""
    measure, numbers = gpu_placement.GpuRuntime.measure, count()

    def measured(*args: Any) -> Measured:
        found, rate = measure(*args), 1e9 if next(numbers) == slow else 1e12
        assert found.rates.gpu is not None
        gpu = replace(found.rates.gpu, read=rate, ops=10 * rate, pcie=rate, slots=rate)
        return found._replace(rates=replace(found.rates, gpu=gpu))

    unknown = DecodeRates({}, None, None)  # all as `measured` says
    monkeypatch.setattr(gpu_placement.GpuRuntime, "measure", measured)
    monkeypatch.setattr(gpu_placement.GpuRuntime, "measure_decode", lambda *args: unknown)
    with hybridmoe.load(path, **BOTH) as llm:
        (said,) = (note for note in llm.notes if "Fewer GPUs" in note)
    assert f"({fast}) alone, prompts " in said and said.startswith("Fewer GPUs are predicted")
    with hybridmoe.load(path, place=["exps=cpu"], **BOTH) as llm:  # nothing is measured
        assert not any("Fewer GPUs" in note for note in llm.notes)


def test_a_sequence_is_saved_from_both_and_restored(path: Path, tmp_path: Path) -> None:
    text, options = "a continued prompt", {"temperature": 0.0, "ignore_eos": True}
    found = []
    for loaded in (BOTH, ONE):
        with hybridmoe.load(path, place=["exps=cpu"], **loaded) as llm:
            ids = llm.tokenizer.encode(text)
            if loaded is BOTH:
                llm.generate(text, max_tokens=2, **options)
                llm.engine.save(tmp_path / "kv", ids, "model")
            else:
                assert llm.engine.restore(tmp_path / "kv", "model") == ids
            result = llm.generate(text + " goes on", max_tokens=3, **options)
            found.append(result.token_ids)
            assert result.timing.cached_tokens > 0
    assert found[0] == found[1]


def test_no_method_of_a_backend_stops_at_the_split() -> None:
    """The defaults do nothing: a new method has to reach every GPU."""
    methods = {n for n, m in vars(ExpertBackend).items() if callable(m) and n[0] != "_"}
    assert methods <= vars(StagedExperts).keys()


def test_experts_on_disk_under_two_gpus(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sizes = {**SMALL, "experts": 8, "expert_width": 256, "q_lora": 64, "layers": 3}
    write_tiny(path, type={"default": Type.F32, "ffn_up_exps": Type.Q8_0}, **sizes)
    with hybridmoe.load(path, device="cpu") as llm:
        total = sum(t.num_bytes for t in llm.file.tensors.values() if "_exps" in t.name)
    found = []
    for options in (ONE, BOTH):
        with hybridmoe.load(path, expert_ram=total * 3 // 4, **options) as llm:
            assert llm.expert_plan is not None and llm.plan.num_vram_slots == 0
            found.append(llm.logits(IDS))
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vram": "2GiB"}, "vram=2.00GiB: expected 2 sizes, one for each GPU"),
        ({"vram": "2GiB,99GiB"}, "vram=99.00 GiB: RTX 3060 has 20.00 GiB free"),
        ({"vram": "2GiB,1GiB"}, "RTX 3060, layers 2: VRAM: 1.* raise --vram to"),
        ({"device": "cuda:0"}, "vram=2.00GiB,2.00GiB: expected one size for one GPU"),
        ({"device": "cuda:0,cuda:0"}, "device='cuda:0,cuda:0': expected each GPU once"),
        ({"kv_type": "int8"}, "kv_type=int8: expected f16 or bf16 on a GPU"),
    ],
)
def test_what_cannot_be_is_one_line(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hybridmoe.load(path, **{**BOTH, **options})
    assert "\n" not in str(caught.value)


def test_both_gpus_have_slots_over_one_cache_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    types = {"default": Type.F32} | {f"ffn_{p}_exps": Type.Q8_0 for p in ("gate", "up", "down")}
    sizes = {**SMALL, "experts": 8, "expert_width": 256, "layers": 3, "q_lora": 64, "context": 256}
    write_tiny(path, type=types, **sizes)
    with hybridmoe.load(path, **BOTH) as llm:
        plans, sizes_of = llm.plan.stages, llm.plan.problem.sizes
        want = generated(llm, 2)
    parts = [sum(size for _, size in plan.vram.parts) for plan in plans if plan.vram]
    budgets = {
        "vram": tuple(size + 2 * sizes_of.slot_bytes for size in parts),
        "expert_ram": (2 + 4 + 1) * sizes_of.buffer_bytes,
    }
    with hybridmoe.load(path, **{**BOTH, **budgets}) as llm:
        assert [plan.num_vram_slots for plan in llm.plan.stages] == [2, 2]
        assert llm.plan.num_ram_experts == 1 and llm.plan.num_disk_experts == 16 - 4 - 1
        got = generated(llm, 2)
        stats = llm.expert_stats()
        assert llm._residency.disk_cache is not None
        llm._residency.disk_cache.native.check()
    assert stats is not None and [tier.place for tier in stats.tiers] == ["VRAM", "RAM"]
    assert [tier.num_slots for tier in stats.tiers] == [4, 1]
    ram = stats.tiers[1].counters
    assert ram.hits + ram.misses == stats.counters.misses
    assert got == want

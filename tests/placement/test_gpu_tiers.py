"""`load` with experts in VRAM, in RAM and on disk, on Triton's interpreter without a GPU."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from logit_distance import relative_error
from numpy.typing import NDArray
from read_faults import add_faults
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import requests_of
from hybridmoe.cachebench.tiers import Rates, simulate_tiers
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.policy.lru import LayerLru
from hybridmoe.experts.routing_trace import read_trace
from hybridmoe.experts.stats import ExpertCounters
from hybridmoe.gguf.outline import read_outline
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.problem import Budgets

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import InterpretedRuntime, use_gpu

from hybridmoe.experts.gpu import expert_cache
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.tier_prefill import TierPrefill
from hybridmoe.placement.gpu_runtime import GpuRuntime

EXPERTS, LAYERS = 8, 2
IDS = np.random.default_rng(3).integers(0, 256, 20).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiers") / "m.gguf"
    parts = {"ffn_gate_exps": Type.Q8_0, "ffn_up_exps": Type.Q4_0, "ffn_down_exps": Type.Q4_K}
    sizes = {**SMALL, "experts": EXPERTS, "expert_width": 256, "q_lora": 64, "context": 256}
    write_tiny(path, type={"default": Type.F32} | parts, **{**sizes, "layers": 1 + LAYERS})
    return path


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let VRAM's policy swap: the default one does not, in so short runs."""
    use_gpu(monkeypatch)
    monkeypatch.setattr(expert_cache, "DEFAULT_VRAM_POLICY", "lru")


@pytest.fixture(scope="module")
def on_cpu(path: Path) -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(path, device="cpu") as llm:
        yield llm


def split(path: Path, num_vram: int, num_ram: int) -> dict[str, int]:
    """Make budgets that leave place for some expert slots in VRAM and in RAM."""
    outline = read_outline(path)
    engine = LoadOptions().engine_config(outline.config)
    budgets = Budgets(ram_bytes=1 << 40, vram_bytes=2 << 30)
    plan = plan_memory(outline.config, outline.tensors, engine, budgets)
    assert plan.vram is not None
    sizes = plan.problem.sizes
    vram = sum(size for _, size in plan.vram.parts) + num_vram * sizes.slot_bytes
    aside = sizes.config.top_k + (2 if num_vram else 0)
    return {"vram": vram, "expert_ram": (num_ram + aside) * sizes.buffer_bytes}


def generated(llm: hybridmoe.LLM, num_tokens: int) -> list[int]:
    text = llm.tokenizer.decode(IDS[:5], skip_special=False)
    return llm.generate(text, temperature=0.0, max_tokens=num_tokens, ignore_eos=True).token_ids


def check(llm: hybridmoe.LLM) -> None:
    """Check that each expert is kept by one tier at most, and that no buffer is lost."""
    assert isinstance(llm.experts, HybridExperts)
    cache, slots = llm._residency.disk_cache, llm.experts._slots
    assert cache is not None
    cache.native.check()
    in_vram = [] if slots is None else slots.cache.kept().tolist()
    assert not set(in_vram) & set(cache.resident().tolist())


def evenly() -> NDArray[np.int64]:
    """All keys, an expert of each layer in turn."""
    return np.arange(LAYERS * EXPERTS).reshape(LAYERS, -1).T.reshape(-1)


def counted(counters: ExpertCounters) -> list[int]:
    c = counters
    return [c.hits, c.misses, c.uploads, c.evictions, c.promoted, c.returned]


@pytest.mark.parametrize(("num_vram", "num_ram"), [(3, 4), (9, 0), (0, 4)])
def test_every_split_answers_as_the_cpu_does_and_counts_as_the_simulator(
    path: Path,
    on_cpu: hybridmoe.LLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_vram: int,
    num_ram: int,
) -> None:
    submit = CachedExperts.submit

    def prompts_only(self: CachedExperts, layer: int, x: object, ids: Sequence[int], w: object):
        assert len(ids) > 16, "a step of decoding takes Python in every layer"
        return submit(self, layer, x, ids, w)

    monkeypatch.setattr(CachedExperts, "submit", prompts_only)
    options = split(path, num_vram, num_ram)
    with hybridmoe.load(path, trace=tmp_path / "t", expert_profile="off", **options) as llm:
        plan = llm.plan
        assert (plan.num_vram_slots, plan.num_ram_experts) == (num_vram, num_ram)
        assert plan.num_disk_experts == LAYERS * EXPERTS - num_vram - num_ram
        assert list(llm._residency.private) == ["token_embd.weight"]  # the rest is in VRAM
        ids = generated(llm, 7)
        stats = llm.expert_stats()
        check(llm)
    assert stats is not None
    prompt = on_cpu.tokenizer.encode(on_cpu.tokenizer.decode(IDS[:5], skip_special=False))
    rows = on_cpu.logits([*prompt, *ids])[len(prompt) - 1 : -1]
    chosen = rows[np.arange(len(ids)), ids]
    assert np.all(rows.max(1) - chosen < 0.05 * np.abs(rows).max())  # but for near-ties the best

    requests = requests_of(read_trace(tmp_path / "t"))
    shape = requests.shape(num_vram)
    vram, ram = LayerLru(shape), RamPolicy(shape, [num_ram])
    vram.warm(evenly())
    want = simulate_tiers(vram, ram, requests, Rates(1, 1, 1, 1), 1).counters()
    want = want if num_vram else want[1:]
    assert [counted(tier.counters) for tier in stats.tiers] == list(map(counted, want))
    assert stats.tiers[-1].place == "RAM"
    if num_vram and num_ram:
        assert stats.tiers[-1].counters.promoted > 0 and stats.tiers[-1].counters.returned > 0


def test_a_prompt_has_the_cpus_logits(path: Path, on_cpu: hybridmoe.LLM) -> None:
    with hybridmoe.load(path, expert_profile="off", **split(path, 3, 4)) as llm:
        got = llm.logits(IDS)
        check(llm)
        assert isinstance(llm.experts, HybridExperts)
        assert isinstance(llm.experts.prefill, TierPrefill)
        tally = llm.experts.prefill.tally
        assert tally.resident > 0 and tally.streamed > 0
    assert relative_error(on_cpu.logits(IDS), got) < 0.1


def test_without_a_hand_over_the_answer_is_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**split(path, 3, 4), "expert_profile": "off"}
    found = []
    for hands_over in (True, False):
        if not hands_over:
            kind = GpuRuntime if torch.cuda.is_available() else InterpretedRuntime
            monkeypatch.setattr(kind, "open_hand_over", lambda *args: None)
        with hybridmoe.load(path, **options) as llm:
            ids = generated(llm, 5)
            stats = llm.expert_stats()
            check(llm)
        assert stats is not None
        found.append((ids, [counted(tier.counters) for tier in stats.tiers]))
    assert found[0] == found[1]


def test_the_last_runs_hottest_experts_fill_vram_and_the_next_ram(
    path: Path, tmp_path: Path
) -> None:
    options = {**split(path, 3, 4), "expert_profile": tmp_path / "hot.json"}
    with hybridmoe.load(path, **options) as llm:
        generated(llm, 4)
        cache = llm._residency.disk_cache
        assert cache is not None
        uses = cache.uses.copy()
    used = int((uses > 0).sum())
    assert used > 3 and uses.sum() == sum(llm.expert_stats().found.values())
    with hybridmoe.load(path, **options) as llm:
        assert isinstance(llm.experts, HybridExperts) and llm.experts._slots is not None
        in_vram = llm.experts._slots.cache.resident()
        cache = llm._residency.disk_cache
        assert cache is not None
        in_ram = cache.resident()
        check(llm)
    assert uses[in_vram].min() >= np.delete(uses, in_vram).max()
    assert len(in_vram) == 3 and len(in_ram) == min(4, used - 3) and uses[in_ram].min() > 0


def test_a_failed_read_ends_the_request_in_one_line_and_the_next_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = add_faults(monkeypatch)
    with hybridmoe.load(path, expert_profile="off", **split(path, 3, 1)) as llm:
        faults.fail(errno.EIO, 1.0)
        with pytest.raises(
            HybridMoeError, match=r"blk\.\d.*m\.gguf: tensor .* Input/output"
        ) as caught:
            generated(llm, 3)
        assert "\n" not in str(caught.value)
        faults.fail(errno.EIO, 0.0)
        assert len(generated(llm, 2)) == 2
        check(llm)


def test_hints_have_no_effect_beside_a_gpu_and_a_line_says_so(path: Path) -> None:
    with hybridmoe.load(path, expert_prefetch=2, **split(path, 3, 4)) as llm:
        assert llm.notes[0] == "expert_prefetch has no effect beside a GPU"
        assert llm.expert_plan is not None and llm.expert_plan.num_ahead == 0

"""Expert offload to disk: equal bits, counters of the policy, recovery from read errors."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_run import request, run
from gguf import GGMLQuantizationType as Type
from read_faults import add_faults
from tiny_gguf import split_file, write_tiny

import hybridmoe
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.errors import ConfigError, DiskError
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.policy import CacheShape, make_policy
from hybridmoe.gguf.names import is_expert_tensor
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.planning.memory_plan import RAM_RESERVE_BYTES
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.step_plan import activation_bytes

pytestmark = pytest.mark.usefixtures("each_io")

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
LONG = "word " * 150
LAYERS, EXPERTS, TOP_K = 3, 8, 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offload") / "tiny.gguf"
    types = {"default": Type.Q8_0, "ffn_gate_exps": Type.Q4_K, "ffn_down_exps": Type.Q6_K}
    write_tiny(path, type=types, layers=LAYERS + 1)
    return path


def buffer_bytes(path: Path) -> int:
    with hybridmoe.load(path, context_tokens=64, expert_ram=all_bytes(path) - 1) as llm:
        assert llm.expert_plan is not None
        return llm.expert_plan.buffer_bytes


def all_bytes(path: Path) -> int:
    with GGUFFile.open(path) as file:
        return sum(t.num_bytes for t in file.tensors.values() if is_expert_tensor(t.name))


@pytest.fixture(scope="module")
def one(path: Path) -> int:
    """Bytes of one expert buffer."""
    return buffer_bytes(path)


def open_cached(path: Path | None, **options: Any) -> hybridmoe.LLM:
    llm = hybridmoe.load(path, context_tokens=512, **options)
    assert llm.expert_plan is not None
    return llm


def outputs(llm: hybridmoe.LLM, num_words: int = 150) -> list[Any]:
    """Decode, prefill a long prompt, run several requests at once, and compute logits."""
    long = "word " * num_words
    texts = [llm.generate(text, **GREEDY).token_ids for text in ("Once", long)]
    # Too few tokens for matrix tiles, however the requests are batched.
    requests = [request([5 + i, 9, 3 * i + 1], 8) for i in range(4)]
    together = [answer.ids for answer in run(llm.engine, *requests)]
    return [texts, together, llm.logits(list(range(7, 60))).tobytes()]


@pytest.mark.parametrize("num_buffers", [TOP_K, TOP_K + 1, 9, 19])
def test_results_equal_those_without_a_cache_bit_for_bit(
    each_isa: str, path: Path, one: int, num_buffers: int
) -> None:
    num_words = 20 if each_isa == "scalar" else 150
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm, num_words)
        assert llm.expert_plan is None and llm.expert_stats() is None
    with open_cached(path, expert_ram=num_buffers * one) as llm:
        assert llm.expert_plan.num_slots == num_buffers - TOP_K
        assert outputs(llm, num_words) == whole
        counters = llm.expert_stats().counters
        assert counters.misses > 0 and (counters.hits > 0) == (num_buffers > TOP_K)


def test_layers_of_several_sizes_have_buffers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    types = {
        "default": Type.Q4_K,
        "blk.2.ffn_down_exps": Type.Q8_0,
        "blk.4.ffn_down_exps": Type.Q8_0,
    }
    write_tiny(path, type=types, layers=5)
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm)
    options = {"expert_ram": all_bytes(path) * 3 // 4, "expert_profile": tmp_path / "hot.json"}
    for is_warm in (False, True):
        with open_cached(path, **options) as llm:
            plan = llm.expert_plan
            assert plan.pool_of_layer == (1, 0, 1, 0)
            assert llm.expert_stats().num_resident == (plan.num_slots if is_warm else 0)
            assert outputs(llm) == whole
            assert llm.expert_stats().num_resident == plan.num_slots
            llm.experts.native.check()


def test_prefetch_and_profiles_change_no_bit(path: Path, one: int, tmp_path: Path) -> None:
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm)
    options = {"expert_ram": 12 * one, "expert_prefetch": 2, "expert_profile": tmp_path / "hot"}
    for _ in range(2):
        with open_cached(path, **options) as llm:
            assert outputs(llm) == whole


def test_the_embedded_model_responds_the_same() -> None:
    def answers(llm: hybridmoe.LLM) -> list[str]:
        with llm:
            messages = [{"role": "user", "content": "What is 47 + 38?"}]
            return [llm.chat(messages, temperature=0.0).text, llm.generate(LONG, **GREEDY).text]

    whole = answers(hybridmoe.load(context_tokens=512))
    assert whole[0].endswith("85")
    assert answers(open_cached(None, expert_ram="2MiB")) == whole


def test_split_files_and_refused_direct_reads(
    path: Path, one: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm)
    copy = tmp_path / "split.gguf"
    copy.write_bytes(path.read_bytes())
    first = split_file(copy, 3)[0]
    really_open = os.open

    def fake(path: Path, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", fake)
    with open_cached(first, expert_ram=5 * one) as llm:
        assert outputs(llm) == whole


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.Tensor]]:
    """Record (layer, ids (T, K)) of every `submit`."""
    calls: list[tuple[int, torch.Tensor]] = []
    really = CachedExperts.submit

    def submit(self: CachedExperts, layer: int, x: Any, ids: torch.Tensor, weights: Any) -> Any:
        calls.append((layer, ids.clone()))
        return really(self, layer, x, ids, weights)

    monkeypatch.setattr(CachedExperts, "submit", submit)
    return calls


@pytest.mark.parametrize("num_slots", [0, 1, 5, 7, 17])
def test_counters_are_those_of_the_policy_on_the_same_accesses(
    path: Path, one: int, num_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    with open_cached(path, expert_ram=(num_slots + TOP_K + 1) * one, expert_prefetch=1) as llm:
        outputs(llm)
        counters = llm.expert_stats().counters
        assert llm.expert_stats().num_resident <= num_slots
    policy = make_policy("lru", CacheShape(LAYERS, EXPERTS, num_slots, TOP_K))
    hits = misses = uploads = evictions = 0
    for layer, ids in calls:
        experts = np.array(list(dict.fromkeys(ids.flatten().tolist())), np.int32)
        decision = policy.on_access(layer - 1, experts, ids.shape[0] > PREFILL_TOKENS)
        hits += int(decision.hits.sum())
        misses += int((~decision.hits).sum())
        uploads += len(decision.admitted)
        evictions += len(decision.evicted)
    found = (counters.hits, counters.misses, counters.uploads, counters.evictions)
    assert found == (hits, misses, uploads, evictions)
    assert counters.bytes_read > 0
    assert counters.hinted >= counters.hinted_right > 0
    assert 0 <= counters.prefetched_used <= counters.prefetched


def test_a_long_prompt_evicts_nothing(path: Path, one: int) -> None:
    with open_cached(path, expert_ram=(6 + TOP_K) * one) as llm:
        llm.generate("Once", **{**GREEDY, "max_tokens": 40})
        before = llm.expert_stats()
        assert before.num_resident == 6
        llm.logits(list(range(7, 300)))
        after = llm.expert_stats().counters
    assert after.misses > before.counters.misses
    assert after.evictions == before.counters.evictions


def test_buffers_are_freed_and_never_more_than_planned(path: Path, one: int) -> None:
    with open_cached(path, expert_ram=6 * one, expert_prefetch=2) as llm:
        experts = llm.experts
        outputs(llm)
        stats = llm.expert_stats()
        assert stats.num_slots == 2 == stats.num_resident
        assert isinstance(experts, CachedExperts)
        assert experts.buffers_in_use <= 2 + 2
        assert experts.buffers_free + experts.buffers_in_use == 6


def test_a_failing_disk_fails_the_request_alone(
    exact_kernels: None, path: Path, one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm)
    faults = add_faults(monkeypatch)
    with open_cached(path, expert_ram=7 * one, expert_prefetch=1) as llm:
        for text in ("Once", LONG):
            faults.fail(errno.EIO)
            with pytest.raises(hybridmoe.HybridMoeError) as caught:
                llm.generate(text, **GREEDY)
            line = str(caught.value)
            assert line.startswith("tiny.gguf: tensor blk.") and "\n" not in line
            assert line.endswith("Input/output error")
            faults.fail(0)
        assert outputs(llm) == whole
        experts = llm.experts
        assert isinstance(experts, CachedExperts)
        assert experts.buffers_free + experts.buffers_in_use == 7


def test_a_file_truncated_during_a_run(
    exact_kernels: None, path: Path, one: int, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    content = path.read_bytes()
    copy.write_bytes(content)
    with hybridmoe.load(path, context_tokens=512) as llm:
        whole = outputs(llm)
    written = copy.stat()
    with open_cached(copy, expert_ram=4 * one) as llm:
        os.truncate(copy, len(content) // 20)  # the dense weights too
        with pytest.raises(hybridmoe.HybridMoeError, match=r"copy\.gguf: tensor .* the file ends"):
            llm.generate(LONG, **GREEDY)
        with open(copy, "r+b") as file:
            file.write(content)
        with pytest.raises(hybridmoe.HybridMoeError, match="the file was changed"):
            llm.generate(LONG, **GREEDY)
        os.utime(copy, ns=(written.st_atime_ns, written.st_mtime_ns))  # it never was
        assert outputs(llm) == whole
        copy.unlink()
        assert outputs(llm) == whole


def test_an_unreadable_file_is_not_loaded(
    path: Path, one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_faults(monkeypatch).fail(errno.EIO)
    with pytest.raises(DiskError, match="Input/output error"):
        hybridmoe.load(path, context_tokens=64, expert_ram=4 * one)


def test_budgets_that_are_too_small_name_the_minimum(path: Path, one: int) -> None:
    with pytest.raises(ConfigError, match=f"expert_ram=10 bytes: expected at least {2 * one} "):
        hybridmoe.load(path, expert_ram=10)
    with pytest.raises(ConfigError, match=f"at least {5 * one} .* 2 experts and 3 read ahead"):
        hybridmoe.load(path, expert_ram=4 * one, expert_prefetch=3)
    with open_cached(path, expert_ram=7 * one) as llm:
        warning = llm.expert_plan.warning
        assert warning is not None
        assert warning.startswith("5 expert slots are less than the 6 experts that one token uses")
        assert "3 layers x 2" in warning
    with open_cached(path, expert_ram=8 * one) as llm:
        assert llm.expert_plan.warning is None


def test_more_than_free_ram_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridmoe.placement.budgets.available_bytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match=r"but 1\.00 MiB are free"):
        hybridmoe.load(path, context_tokens=64, expert_ram=all_bytes(path) - 1)


def test_the_default_budget_is_free_ram_less_a_margin(
    path: Path, one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hybridmoe.load(path, context_tokens=64, kv_tokens=64) as llm:
        latents, config = llm.engine.kv_plan, llm.config
        sizes = sizes_of(llm.file.tensors.values(), config)
    base = RAM_RESERVE_BYTES + activation_bytes(config, 512, on_cpu=True) + latents.num_bytes
    base += sizes.dense_bytes + sizes.embedding_bytes
    # Too little for any cache: the memory map is used, and the system pages.
    for free, num_slots in ((0, None), (base + one, None), (base + 5 * one, 3), (1 << 40, None)):
        monkeypatch.setattr("hybridmoe.placement.budgets.available_bytes", lambda free=free: free)
        with hybridmoe.load(path, context_tokens=64, kv_tokens=64) as llm:
            assert (llm.expert_plan and llm.expert_plan.num_slots) == num_slots


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "hot.json"


def test_a_profile_makes_the_next_start_warm(path: Path, one: int, profile: Path) -> None:
    options = {"expert_ram": (8 + TOP_K) * one, "expert_profile": profile}
    with open_cached(path, **options) as llm:
        llm.generate("Once", **GREEDY)
        cold = llm.expert_stats().counters
        resident = llm.experts.resident().tolist()
    assert len(resident) == 8
    with open_cached(path, **options) as llm:
        assert llm.experts.resident().tolist() == resident
        begun = llm.expert_stats().counters
        assert begun.bytes_read > 0 and begun.hits == begun.misses == begun.uploads == 0
        llm.generate("Once", **GREEDY)
        assert llm.expert_stats().counters.hits > cold.hits
    with open_cached(path, **{**options, "expert_ram": (3 + TOP_K) * one}) as llm:
        assert llm.expert_stats().num_resident == 3
    folder = profile.parent / "gone"
    folder.mkdir()
    sparse = open_cached(path, expert_ram=5 * one, expert_profile=folder / "profile")
    sparse.generate("Once", **GREEDY)
    folder.rmdir()
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        sparse.close()
    before = profile.read_bytes()
    open_cached(path, **options).close()  # no requests, so nothing to update
    assert profile.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "expected an expert profile in JSON"),
        ("[1]", "expected an expert profile"),
        ('{"format": "hybridmoe expert profile 2"}', "expected an expert profile"),
        ('{"format": "hybridmoe expert profile 1"}', "expected counts of 3 layers of 8 experts"),
        ('{"format": "hybridmoe expert profile 1", "uses": [[1], [2], [3]]}', "another model's"),
        (
            '{"format": "hybridmoe expert profile 1", "uses": [[%s], [%s], [%s]],'
            ' "resident": [[0], [8], []]}' % (("1,1,1,1,1,1,1,1",) * 3),
            "resident: expected lists",
        ),
    ],
)
def test_a_damaged_profile_is_an_error_of_one_line(
    path: Path, one: int, profile: Path, content: str, problem: str
) -> None:
    profile.write_text(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        hybridmoe.load(path, expert_ram=4 * one, expert_profile=profile)
    assert "\n" not in str(caught.value)
    assert profile.read_text() == content


@pytest.mark.parametrize("options", [{"expert_prefetch": -1}, {"expert_ram": 0}])
def test_options_out_of_range_are_refused(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        hybridmoe.load(path, **options)

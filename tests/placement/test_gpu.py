"""`load` with a GPU: the whole program, on Triton's interpreter without one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from logit_distance import kl_divergence, relative_error
from numpy.typing import NDArray
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.cachebench.simulator import (
    EVICTIONS,
    HITS,
    MISSES,
    UPLOADS,
    Requests,
    requests_of,
    simulate,
)
from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy.cost_aware import UPLOAD_HITS, CostAware
from hybridmoe.experts.routing_trace import read_trace
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.llm import load as loading
from hybridmoe.model.decoder import Decoder

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import InterpretedRuntime, use_gpu

from hybridmoe.experts.gpu.calibrate_decode import DecodeRates
from hybridmoe.placement import gpu_compile
from hybridmoe.placement.gpu_runtime import GpuRuntime

NUM_EXPERTS = 2 * SMALL["experts"]
IDS = np.random.default_rng(3).integers(0, 256, 20).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "m.gguf"
    types = {"default": Type.F32} | {
        f"ffn_{part}_exps": Type.Q8_0 for part in ("gate", "up", "down")
    }
    write_tiny(path, type=types, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    return path


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch)


@pytest.fixture(scope="module")
def on_cpu(path: Path) -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(path, device="cpu") as llm:
        yield llm


def vram_for(path: Path, num_slots: int) -> int:
    """VRAM budget that leaves place for a few expert slots."""
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert llm.plan.vram is not None
        parts = sum(size for _, size in llm.plan.vram.parts)
        return parts + num_slots * llm.plan.problem.sizes.slot_bytes


def evenly(requests: Requests) -> NDArray[np.int64]:
    """All keys, an expert of each layer in turn."""
    keys = np.arange(requests.num_layers * requests.num_experts)
    return keys.reshape(requests.num_layers, -1).T.reshape(-1)


def generated(llm: hybridmoe.LLM, num_tokens: int) -> list[int]:
    text = llm.tokenizer.decode(IDS[:5], skip_special=False)
    return llm.generate(text, temperature=0.0, max_tokens=num_tokens, ignore_eos=True).token_ids


def test_a_prompt_has_the_cpus_logits(path: Path, on_cpu: hybridmoe.LLM) -> None:
    want = on_cpu.logits(IDS)
    with hybridmoe.load(path, vram="2GiB", context_tokens=200) as llm:
        got = llm.logits(IDS)
        assert llm.engine.config.chunk_tokens == 512  # longer steps are of no use here
        said, speed = llm.notes
        assert f"{NUM_EXPERTS} expert slots" in said
        assert speed.startswith("decoding: ") and " expected with 100% of the chosen" in speed
    assert np.median(kl_divergence(want, got)) < 1e-3
    assert relative_error(want, got) < 0.1


def test_an_answer_is_what_its_logits_say_with_graphs_and_a_cache(path: Path) -> None:
    with hybridmoe.load(path, vram="2GiB") as llm:
        ids = generated(llm, 10)
        stats = llm.expert_stats()
        prompt = llm.tokenizer.encode(llm.tokenizer.decode(IDS[:5], skip_special=False))
        rows = llm.logits([*prompt, *ids])[len(prompt) - 1 : -1]
    chosen = rows[np.arange(len(ids)), ids]
    assert np.all(rows.max(1) - chosen < 0.05 * np.abs(rows).max())  # but for near-ties the best
    assert stats is not None and stats.place == "VRAM"
    assert stats.counters.hits > stats.counters.late
    assert stats.num_resident > 0


def test_without_a_hand_over_the_answer_is_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert not any("its driver calls" in note for note in llm.notes)
        ids = generated(llm, 5)
    kind = GpuRuntime if torch.cuda.is_available() else InterpretedRuntime
    monkeypatch.setattr(kind, "open_hand_over", lambda *args: None)
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert "its driver calls the CPU instead" in llm.notes[-1]
        assert generated(llm, 5) == ids


def test_counters_are_the_simulators_on_the_runs_trace(path: Path, tmp_path: Path) -> None:
    with hybridmoe.load(path, vram=vram_for(path, 5), trace=tmp_path / "t") as llm:
        generated(llm, 12)
        stats = llm.expert_stats()
        policy = llm.experts._slots.cache._policy
    assert stats is not None and stats.num_slots == 5
    c = stats.counters
    requests = requests_of(read_trace(tmp_path / "t"))
    same = CostAware(requests.shape(stats.num_slots))
    same.upload_hits = policy.upload_hits
    assert same.upload_hits != UPLOAD_HITS  # from the rates of this machine: inf where none pays
    got = simulate(same, requests, warm=evenly(requests))
    counted = (c.hits, c.misses, c.uploads, c.evictions)
    assert counted == tuple(got.total(kind) for kind in (HITS, MISSES, UPLOADS, EVICTIONS))
    assert c.hits > 0


def test_a_graph_captured_at_load_changes_neither_answer_nor_counters(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for captures in (False, True):
        monkeypatch.setattr(
            gpu_compile, "capture_first_graph", Decoder.capture if captures else lambda _: None
        )
        with hybridmoe.load(path, vram="2GiB") as llm:
            ids = generated(llm, 3)
            stats = llm.expert_stats()
        assert stats is not None
        runs.append((ids, stats.counters.hits, stats.counters.misses))
    assert runs[0] == runs[1]


def test_measured_rates_price_uploads_and_predict(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vram = vram_for(path, 5)
    kind = GpuRuntime if torch.cuda.is_available() else InterpretedRuntime
    costs, speeds = [], []
    for slots, hand_over_s in ((1e15, 1e-6), (1e3, 1e-6), (1e15, 1.0)):
        found = DecodeRates({Type.F32: 1.25e9}, slots, hand_over_s)
        monkeypatch.setattr(kind, "measure_decode", lambda *args, found=found: found)
        with hybridmoe.load(path, vram=vram) as llm:
            costs.append(llm.experts._slots.cache._policy.upload_hits)
            (line,) = [note for note in llm.notes if note.startswith("decoding")]
            speeds.append(float(line.split()[1]))
            assert f"F32 1.25 GB/s, experts in slots {slots / 1e9:.3g} GB/s" in line
            assert f"{hand_over_s * 1e6:.3g} us a layer" in line
    assert costs[1] > costs[0] == costs[2]  # slower slots save less
    assert speeds[0] > 2 * max(speeds[1:])


def test_a_layer_pinned_to_the_gpu_is_there_from_the_start(path: Path) -> None:
    place = [r"blk\.1\.ffn_.*_exps=cuda", "nothing=cpu"]
    with hybridmoe.load(path, vram="2GiB", place=place) as llm:
        assert llm.notes[0] == "place: 'nothing=cpu' matches no tensor"
        generated(llm, 4)
        stats = llm.expert_stats()
    assert stats is not None
    assert stats.num_resident >= SMALL["experts"]
    assert stats.counters.hits > stats.counters.late  # the pinned ones are there from the start


def test_experts_can_be_left_to_the_cpu(path: Path) -> None:
    place = [r"blk\.1\..*_exps=cpu"]
    with hybridmoe.load(path, vram="2GiB", place=place) as llm:
        assert f"{SMALL['experts']} expert slots" in llm.notes[0]
        generated(llm, 8)
        stats = llm.expert_stats()
    assert stats is not None
    assert stats.counters.hits > 0 and stats.num_resident <= SMALL["experts"]
    with hybridmoe.load(path, vram="2GiB", place=["exps=cpu"]) as llm:
        assert "; 0 expert slots" in llm.notes[0] and len(llm.notes) == 1
        generated(llm, 2)
        assert llm.expert_stats() is None


def test_the_last_runs_profile_fills_the_slots_before_the_first_token(path: Path) -> None:
    options = {"vram": vram_for(path, 3)}
    resident, hits = [], []
    for _ in range(2):
        with hybridmoe.load(path, **options) as llm:
            slots = llm.experts._slots
            assert slots is not None
            resident.append(slots.cache.resident().tolist())
            generated(llm, 6)
            stats = llm.expert_stats()
            assert stats is not None and stats.num_resident == 3
            hits.append(stats.counters.hits)
            uses = slots.cache.uses
    assert resident[0] == [0, 1, SMALL["experts"]]  # as many of each layer
    loaded: list[hybridmoe.Progress] = []
    with hybridmoe.load(path, expert_profile="off", progress=loaded.append, **options) as llm:
        assert llm.experts._slots.cache.resident().tolist() == resident[0]
        size = llm.experts._slots.slots.nbytes
    assert any(p.phase == "load" and p.done == p.total == size for p in loaded)
    left_out = np.delete(uses, resident[1])
    assert uses[resident[1]].min() >= left_out.max() and len(uses) == NUM_EXPERTS
    assert hits[1] > hits[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vram": "1GiB"}, r"VRAM: 1.\d+ GiB are needed .* raise --vram to"),
        ({"vram": "9999GiB"}, r"vram=9.76 TiB: .* has [\d.]+ GiB free"),
        ({"kv_type": "int8"}, "kv_type=int8: expected f16 or bf16 on a GPU"),
        ({"place": ["ffn_up_exps=cuda"]}, "go together"),
    ],
)
def test_what_cannot_be_is_one_line(path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hybridmoe.load(path, **options)
    assert "\n" not in str(caught.value)


def test_without_a_gpu_one_line_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = NoGpu("GTX 1080 is too old")
    monkeypatch.setattr(loading, "choose_gpus", lambda wanted: found)
    with hybridmoe.load(path) as llm:
        assert llm.notes == ("on the CPU alone: GTX 1080 is too old",)
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert llm.notes == (
            "on the CPU alone, so that vram and place have no effect: GTX 1080 is too old",
        )

"""Rank 0 with a GPU for its own part, on Triton's interpreter, and a worker without one."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from logit_distance import kl_divergence, relative_error
from ranks import SHARES, WorkerThread, meet, pooled
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import use_gpu

IDS = np.random.default_rng(3).integers(0, 256, 8).tolist()


@pytest.mark.interpreter
def test_experts_in_vram_and_on_another_host_are_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    types = {"default": Type.F32} | {
        f"ffn_{part}_exps": Type.Q8_0 for part in ("gate", "up", "down")
    }
    write_tiny(path, type=types, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    with hybridmoe.load(path, device="cpu") as llm:
        want = llm.logits(IDS)
        text = llm.generate("Once", temperature=0.0, max_tokens=2, ignore_eos=True).token_ids
    place = meet(monkeypatch, 2)
    worker = WorkerThread(path, place, 1, expert_share=SHARES)
    use_gpu(monkeypatch)
    with pooled(path, place, SHARES, vram="2GiB") as llm:
        assert llm.plan.num_vram_slots == 2 * SMALL["experts"] // 2
        got = llm.logits(IDS)
        assert (
            llm.generate("Once", temperature=0.0, max_tokens=2, ignore_eos=True).token_ids == text
        )
        stats = llm.expert_stats()
        assert stats is not None and stats.counters.hits > 0
    worker.join()
    assert worker.error is None
    assert relative_error(want, got) < 0.03
    assert np.median(kl_divergence(want, got)) < 1e-4

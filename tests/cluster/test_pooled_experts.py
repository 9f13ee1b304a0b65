"""Experts pooled from several ranks: results of one process, whatever places the experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_run import request, run
from gguf import GGMLQuantizationType as Type
from logit_distance import kl_divergence
from numpy.typing import NDArray
from ranks import WorkerThread, meet, pooled, start_worker
from tiny_config import VARIANTS
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.demo import demo_path

IDS = list(range(60, 150))  # one long prompt
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
TYPES = {"default": Type.Q8_0, "ffn_down_exps": Type.Q6_K}


def outputs(llm: hybridmoe.LLM) -> tuple[list[Any], NDArray[np.float32]]:
    """Greedy responses, alone and in a batch, and logits."""
    alone = llm.generate("Once upon a time", **GREEDY).token_ids
    requests = [request([5 + i, 9, 3 * i + 1], 8) for i in range(4)]
    together = [answer.ids for answer in run(llm.engine, *requests)]
    return [alone, together], llm.logits(IDS)


def of_one_process(path: Path) -> tuple[list[Any], NDArray[np.float32]]:
    with hybridmoe.load(path, device="cpu", context_tokens=256) as llm:
        return outputs(llm)


def of_threads(
    path: Path, shares: tuple[float, ...], patch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[Any], NDArray[np.float32]]:
    """Outputs with workers in threads, which must end in order."""
    place = meet(patch, len(shares))
    workers = [
        WorkerThread(path, place, rank, expert_share=shares, **options)
        for rank in range(1, len(shares))
    ]
    with pooled(path, place, shares, device="cpu", context_tokens=256, **options) as llm:
        assert (llm.expert_plan is None) == ("expert_ram" not in options)
        found = outputs(llm)
        assert any("experts of each layer: rank 0 0-" in note for note in llm.notes)
    for worker in workers:
        worker.join()
        assert worker.error is None and len(worker.said) == 1
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_responds_as_in_one_process(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    layers = VARIANTS[variant].get("layers", 3)
    write_tiny(
        path, variant=variant, gain=0.7, layers=layers, mtp="layers" not in VARIANTS[variant]
    )
    texts, logits = of_one_process(path)
    pooled_texts, pooled_logits = of_threads(path, (2.0, 1.0, 1.0), monkeypatch)
    assert pooled_texts == texts
    # F32 weights: nothing is rounded but sums, which have another order.
    assert np.abs(pooled_logits - logits).max() <= 2e-4 * np.abs(logits).max()


def test_same_shares_give_the_same_bits_from_ram_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, type=TYPES, gain=0.7)
    texts, logits = of_one_process(path)
    first = of_threads(path, (3.0, 5.0), monkeypatch)
    for options in ({}, {"expert_ram": "1MiB"}):
        again = of_threads(path, (3.0, 5.0), monkeypatch, **options)
        assert again[0] == first[0] and np.array_equal(again[1], first[1])
    assert first[0] == texts
    assert np.median(kl_divergence(logits, first[1])) <= 1e-3


def test_processes_of_other_threads_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, key = demo_path(), tmp_path / "key"
    key.touch(0o600)
    key.write_text("sixteen bytes or more\n")
    expected = of_threads(path, (1.0, 1.0), monkeypatch)
    assert expected[0] == of_one_process(path)[0]
    place = meet(monkeypatch, 2, key)
    arguments = ("--expert-ram", "2MiB", "--cluster-key-file", str(key))
    process = start_worker(path, place, 1, *arguments, num_threads=2)
    options = {"device": "cpu", "context_tokens": 256, "cluster_key_file": key}
    with pooled(path, place, (1.0, 1.0), **options) as llm:
        found = outputs(llm)
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "RAM holds" in said and said.count("\n") == 1


def test_a_layer_that_chooses_no_worker_sends_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, gain=0.7)
    place = meet(monkeypatch, 2)
    worker = WorkerThread(path, place, 1, expert_share=(1.0, 1.0))
    with pooled(path, place, (1.0, 1.0), device="cpu", context_tokens=256) as llm:
        x, weights = torch.randn(2, llm.config.hidden), torch.ones(2, 2)
        llm.experts.begin_step(2)
        own = torch.tensor([[0, 3], [-1, 2]], dtype=torch.int32)
        (remote,) = llm.experts._remotes
        llm.experts.submit(1, x, own, weights).result()
        assert remote.link._num_requests == 0
        theirs = torch.tensor([[0, 3], [7, 2]], dtype=torch.int32)
        llm.experts.submit(1, x, theirs, weights).result()
        assert remote.link._num_requests == 1
    worker.join()

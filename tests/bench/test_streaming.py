"""The benchmark of streamed experts runs, with the interpreter in the GPU's place."""

from functools import partial
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from small_model import SMALL
from tiny_gguf import write_tiny
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import use_gpu

from bench import bench_streaming
from bench._timeline import Interval
from bench.bench_streaming import length, measure


def test_prompts_are_timed_from_registered_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch)
    monkeypatch.setattr(bench_streaming, "_TIMES", 1)
    of_cpu = partial(profile, activities=[ProfilerActivity.CPU])
    monkeypatch.setattr(bench_streaming, "profile", lambda **_: of_cpu())
    path = tmp_path / "m.gguf"
    write_tiny(path, type=Type.Q8_0, **{**SMALL, "q_lora": 64, "context": 256})
    options = {"device": "cuda", "vram": "2GiB"}
    rows = measure("registered", path, 128, options, [20])
    names = [row.name.strip() for row in rows]
    assert names[:3] == [
        "registered, prompt of 20", "the first after loading", "experts over the link"
    ]  # fmt: skip
    assert rows[0].value and "GB registered" in rows[0].note


def test_the_length_of_a_union() -> None:
    spans = [Interval(1.0, 3.0), Interval(0.0, 0.5), Interval(2.0, 4.0), Interval(2.5, 2.75)]
    assert length(spans) == 3.5

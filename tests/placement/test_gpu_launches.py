"""The list of launches that a model needs, against those of real runs."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.demo import demo_path
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config

pytest.importorskip("triton", reason="needs triton")

import triton
from interpreted_gpu import use_gpu
from watched_launches import watch_launches

from hybridmoe.kernels.triton.runtime import num_multiprocessors
from hybridmoe.placement import gpu_compile
from hybridmoe.placement.gpu_launches import GpuPart, model_launches

ROOT = Path(__file__).parent.parent.parent

MIXED = {
    "default": Type.F32,
    "attn_q_a": Type.Q8_0,
    "attn_output": Type.Q4_K,
    "token_embd": Type.Q8_0,
    "ffn_gate_exps": Type.Q4_K,
    "ffn_up_exps": Type.Q4_K,
    "ffn_down_exps": Type.Q6_K,
}
MODELS = {
    "k2": {"variant": "k2", "type": MIXED},
    "old v3": {"variant": "v3", "type": Type.Q8_0, "split_kv_b": False},
}


def listed(path: Path) -> set[str]:
    """Keys of the launches that a model is said to need, on the GPU at hand."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with GGUFFile.open(path) as file:
        config = read_config(file.metadata, file.tensors)
        count = num_multiprocessors(device)
        found = model_launches(file, config, GpuPart(kv_type="f16"), count)
    return {launch.key for launch in found}


@pytest.mark.parametrize("model", MODELS)
def test_every_launch_of_a_run_is_listed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(MODELS[model])
    path = tmp_path / "m.gguf"
    write_tiny(path, **{**SMALL, "context": 2048, **options})  # type: ignore[arg-type]
    use_gpu(monkeypatch)
    with watch_launches() as launched, hybridmoe.load(path, vram="2GiB") as llm:
        for num_tokens in (1, 3, 5, 17, 65):  # one, a few, several, a short and a long prompt
            llm.logits(list(range(num_tokens)))
        llm.generate("a", temperature=0.0, max_tokens=3, ignore_eos=True)  # graphs
    names = {launch.name for launch in launched.values()}
    assert names >= {"_attention_kernel", "_gemv_kernel", "_send_kernel"}
    assert names & {"down_tiles_kernel", "down_vectors_kernel"}
    assert not launched.keys() - listed(path)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
def test_what_is_compiled_ahead_is_all_that_launches_need(tmp_path: Path) -> None:
    """The embedded model's vocabulary is odd: of 1400 tokens, two rows are whole vectors."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT, *sys.path]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/stub_driver.py"), str(demo_path())],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    compiled, launched, compiled_again, launched_again = map(json.loads, done.stdout.splitlines())
    count = compiled["compiled"]
    assert count > 10 and compiled["cached"] == 0 and compiled["launched"] == 0
    assert launched["launched"] > 50 and not launched["missing"]
    assert compiled_again["compiled"] == 0 and compiled_again["cached"] == count
    assert launched_again["launched"] > launched["launched"] and not launched_again["missing"]


def test_a_load_does_not_need_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of the list")

    monkeypatch.setattr(gpu_compile, "IS_INTERPRETED", False)
    monkeypatch.setattr(gpu_compile, "_compile", fail)
    use_gpu(monkeypatch)
    path = tmp_path / "m.gguf"
    write_tiny(path, **{**SMALL, "type": Type.Q8_0})  # type: ignore[arg-type]
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert "expert slots" in llm.notes[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_after_load_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[str] = []

    def hook(*, fn: Any, **_: object) -> None:
        late.append(fn.name)

    with hybridmoe.load(device="cuda") as llm:
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
        for num_tokens in (1, 3, 16, 40, 700):
            llm.logits(list(range(num_tokens)))
        llm.generate("Hello! " * 200, temperature=0.0, max_tokens=40, ignore_eos=True)
    assert not late

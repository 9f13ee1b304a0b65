"""The self-check at load: right kernels pass, and what a wrong one computes is left to the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logit_distance import relative_error
from random_weights import random_matrix
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.config import ModelConfig
from hybridmoe.errors import KernelError
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.gguf.quant_types import QuantType as T
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import InterpretedRuntime, gpu_device, use_gpu

from hybridmoe.device import cuda
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.experts.gpu import slot_pool
from hybridmoe.kernels.triton import matmul
from hybridmoe.kernels.triton.matrix import TYPES, DeviceMatrix
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS
from hybridmoe.placement import self_check
from hybridmoe.placement.network_check import network_cases
from hybridmoe.placement.self_check import SelfCheck

KINDS = {
    "default": T.F32, "attn_output": T.Q8_0, "attn_q_b": T.Q8_0, "ffn_down": T.Q4_0,
    "ffn_gate_exps": T.Q8_0, "ffn_up_exps": T.Q8_0, "ffn_down_exps": T.Q4_0,
}  # fmt: skip
IDS = np.random.default_rng(3).integers(0, 256, 20).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("self-check") / "m.gguf"
    write_tiny(path, type=KINDS, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    return path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `load` use a GPU, or the interpreter in its place, and check it."""
    use_gpu(monkeypatch)
    monkeypatch.setattr(InterpretedRuntime, "checks_itself", True)


def break_products(monkeypatch: pytest.MonkeyPatch, kind: T, break_: Callable[..., Any]) -> None:
    """Break the products of one type."""
    real = matmul.batched_linear

    def broken(x: torch.Tensor, w: DeviceMatrix, out: Any = None) -> torch.Tensor:
        y = real(x, w, out)
        return break_(y) if w.type == kind else y

    for module in (matmul, self_check):
        monkeypatch.setattr(module, "batched_linear", broken)


def break_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let experts in slots give other rows' sums, as Triton 3.6 did."""
    real = slot_pool.expert_ffn
    for module in (slot_pool, self_check):
        monkeypatch.setattr(module, "expert_ffn", lambda *args: real(*args).roll(1, 1))


# Of the later types only those that differ here: a scale of each row, a tile of its own.
CHECKED = [kind for kind in TYPES if kind < T.Q1_0 or kind in (T.IQ4_KS, T.IQ2_KL)]


@pytest.mark.parametrize("kind", CHECKED, ids=lambda kind: kind.name)
def test_right_products_pass_and_slightly_wrong_weights_do_not(kind: T) -> None:
    check = SelfCheck(gpu_device())
    w = random_matrix(kind, 2, 40, 512)
    assert check.is_right(DeviceMatrix.from_host(w, check.device.torch), w, "w")
    counts = ["1", "2", "4", "5", "17"] if kind.name in VECTOR_KINDS else ["1", "5", "17"]
    assert [c.kernel.split()[2] for c in check.found.checks] == counts
    assert all(c.error < 0.9 for c in check.found.checks)
    wrong = SelfCheck(gpu_device())
    on_gpu = DeviceMatrix.from_host(random_matrix(kind, 2, 40, 512, seed=1), check.device.torch)
    assert not wrong.is_right(on_gpu, w, "w") and len(wrong.found.lines) == 1
    assert not any(c.is_right for c in wrong.found.checks)


@pytest.mark.parametrize("row", [0, 39])
def test_one_wrong_row_at_either_end_is_seen(row: int) -> None:
    w, check = random_matrix(T.BF16, 1, 40, 256), SelfCheck(gpu_device())
    on_gpu = DeviceMatrix.from_host(w, check.device.torch)
    on_gpu.data.view(40, -1)[row] = on_gpu.data.view(40, -1)[20]
    assert not check.is_right(on_gpu, w, "w")


@pytest.mark.parametrize("kinds", [(T.Q4_K, T.Q5_K, T.Q6_K), (T.BF16, T.F16, T.Q8_0)], ids=str)
def test_right_experts_pass_and_wrong_ones_do_not(
    kinds: tuple[T, T, T], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ExpertWeights(*(random_matrix(kind, 2, 256, 256) for kind in kinds))
    experts = RoutedExperts({1: weights, 2: weights, 3: weights}, 4)
    check = SelfCheck(gpu_device())
    assert check.wrong_layers(experts, {3}) == frozenset()
    assert len(check.found.checks) == 4 and all(c.error < 0.9 for c in check.found.checks)
    break_experts(monkeypatch)
    assert check.wrong_layers(experts, {3}) == {1, 2}
    (line,) = check.found.lines
    assert f"the CPU computes experts of {', '.join(k.name for k in kinds)} instead" in line
    assert line.endswith("(blk.1, blk.2)") and "\n" not in line


@pytest.mark.parametrize("variant", ["k2", "v2", "v3"])
@pytest.mark.parametrize("kv_type", ["f16", "bf16"])
def test_a_right_network_passes(variant: str, kv_type: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny(path, variant=variant, type=T.F32, **SMALL)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
    check = SelfCheck(gpu_device())
    check.check_network(config, kv_type)
    assert len(check.found.checks) == 4 and all(c.error < 0.7 for c in check.found.checks)


def test_right_sparse_attention_passes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny(
        path, variant="glm5", type=T.F32, **SMALL | {"layers": 4, "index_heads": 4, "index_dim": 16}
    )
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
    case = next(c for c in network_cases(config, "f16") if c.name == "sparse attention")
    assert case.error(CpuDevice(), gpu_device()) < 0.7


def test_a_wrong_type_is_left_to_the_cpu_and_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_products(monkeypatch, T.Q8_0, lambda y: y.roll(1, -1))
    check = SelfCheck(gpu_device())
    with GGUFFile.open(path) as file:
        device = gpu_device(is_right=check.is_right)
        Decoder(Weights(file, device=device), ModelConfig.from_metadata(file.metadata))
        wrong = {t.name for t in file.tensors.values() if t.type == T.Q8_0 and "exps" not in t.name}
    assert set(device.on_cpu) == wrong and len(wrong) == 6
    (line,) = check.found.lines
    assert line.startswith("self-check: the GPU is wrong in products of 1 token (Q8_0, ")
    assert "the CPU computes products of Q8_0 instead (" in line and "and 4 more" in line


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_model_with_a_wrong_type_answers_as_the_cpu(
    path: Path, monkeypatch: pytest.MonkeyPatch, checked: None, value: float
) -> None:
    with hybridmoe.load(path, device="cpu") as llm:
        want = llm.logits(IDS)
        assert llm.kernel_checks == ()
    break_products(monkeypatch, T.Q4_0, lambda y: y * value)
    with hybridmoe.load(path, vram="2GiB", place=["exps=cpu"]) as llm:
        got = llm.logits(IDS)
        assert [note.split(" (")[0] for note in llm.notes if "self-check" in note] == [
            "self-check: the GPU is wrong in products of 1 token"
        ]
        assert {c.is_right for c in llm.kernel_checks} == {True, False}
    assert relative_error(want, got) < 0.1


def test_a_model_with_wrong_experts_answers_as_the_cpu(
    path: Path, monkeypatch: pytest.MonkeyPatch, checked: None
) -> None:
    with hybridmoe.load(path, device="cpu") as llm:
        want = llm.logits(IDS[:5])
    break_experts(monkeypatch)
    with hybridmoe.load(path, vram="2GiB") as llm:
        got = llm.logits(IDS[:5])
        assert llm.expert_stats() is None
        assert (
            sum("experts of Q8_0, Q8_0, Q4_0 instead (blk.1, blk.2)" in n for n in llm.notes) == 1
        )
    assert relative_error(want, got) < 0.1


def test_with_wrong_attention_the_cpu_computes_it_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, checked: None
) -> None:
    real = cuda.latent_attention
    monkeypatch.setattr(cuda, "latent_attention", lambda *a, **k: real(*a, **k).roll(1, 0))
    with hybridmoe.load(path, device="cpu") as llm:
        want = llm.logits(IDS)
    with hybridmoe.load(path, device="cuda", vram="2GiB") as llm:
        (note,) = llm.notes
        assert np.array_equal(llm.logits(IDS), want)
    assert note.startswith("on the CPU alone")
    assert "self-check: the GPU is wrong in attention of decoding (f16 KV cache of " in note


def test_a_kernel_that_fails_is_wrong_and_a_gpu_that_fails_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(error: Exception) -> Callable[..., Any]:
        def run(*args: object) -> Any:
            raise error

        return run

    w = random_matrix(T.Q8_0, 1, 8, 32)
    check = SelfCheck(gpu_device())
    on_gpu = DeviceMatrix.from_host(w, check.device.torch)
    monkeypatch.setattr(self_check, "batched_linear", fail(ValueError("no such layout")))
    assert not check.is_right(on_gpu, w, "w")
    assert "(Q8_0, 8 x 32): ValueError: no such layout; the CPU" in check.found.lines[0]
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(self_check, "batched_linear", fail(lost))
    with pytest.raises(RuntimeError, match="illegal"):
        SelfCheck(gpu_device()).is_right(on_gpu, w, "w")


def test_wrong_routing_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = SelfCheck(gpu_device())
    real = type(check.device).route

    def other(logits: torch.Tensor, *rest: Any) -> Any:
        return real(-logits, *rest)

    monkeypatch.setattr(type(check.device), "route", staticmethod(other))
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
    with pytest.raises(KernelError, match=r"the GPU is wrong in routing \(2 of 4 experts\)"):
        check.check_network(config, "f16")

"""Parity with llama.cpp's logits from the same file: all routing variants and tensor types.

llama.cpp runs with the file's own YaRN betas handed to it (its deepseek2 ignores the keys).
Randomly initialised files: near-tie router flips cascade there, so medians are compared, never
greedy text; that is done on the embedded model, in tests/demo/test_parity.py. Distances from exact
arithmetic are those of both with their defaults: a float16 cache, on either side.
"""

from pathlib import Path

import numpy as np
import pytest
from exact_network import exact_logits
from gguf import GGMLQuantizationType as Type
from logit_distance import kl_divergence
from tiny_gguf import write_tiny

import hybridmoe
from bench._llama_cpp import LlamaCpp

NUM_TOKENS = 96
# Errors of rounded activations grow some tenfold in the default random model, on both sides.
CALM = 0.7
VARIANTS = ["k2", "v3", "v2", "v2lite", "moonlight", "mistral4"]
QUANTIZED = [
    Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1,
    Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
    Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S,
    Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_NL, Type.IQ4_XS, Type.MXFP4,
]  # fmt: skip


def _token_ids(vocab_size: int) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab_size, NUM_TOKENS).tolist()


def _both(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Compute (llama.cpp's logits, ours) for one random sequence."""
    with hybridmoe.load(path, kv_type="f32") as llm:
        ids = _token_ids(llm.config.vocab_size)
        ours = llm.logits(ids)
        yarn = llm.config.yarn
    betas = (yarn.beta_fast, yarn.beta_slow) if yarn else None
    with LlamaCpp(path, context_tokens=NUM_TOKENS, yarn_betas=betas, exact_attention=True) as peer:
        return peer.logits(ids), ours


@pytest.mark.parametrize("split", [True, False], ids=["split_kv_b", "whole_kv_b"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_f32_files_agree_for_every_routing_variant(
    variant: str, split: bool, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant=variant, type=Type.F32, split_kv_b=split)
    theirs, ours = _both(path)
    assert np.median(kl_divergence(theirs, ours)) <= 1e-8


@pytest.mark.parametrize("variant", ["v32", "glm5"])
def test_f32_files_with_an_indexer_agree(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant=variant, type=Type.F32, index_top_k=20)
    theirs, ours = _both(path)
    assert np.median(kl_divergence(theirs, ours)) <= 1e-8


def test_files_with_gate_and_up_in_one_tensor_agree(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", type=Type.F32, fused_gate_up=True)
    theirs, ours = _both(path)
    assert np.median(kl_divergence(theirs, ours)) <= 1e-8


def test_factors_of_nvfp4_agree(tmp_path: Path) -> None:
    """Of experts, which llama.cpp's deepseek2 leaves out and its deepseek32 applies."""
    path, experts = tmp_path / "tiny.gguf", ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    types = {"default": Type.F32, **dict.fromkeys(experts, Type.NVFP4)}
    write_tiny(path, variant="v32", type=types, scaled=True, gain=CALM, index_top_k=NUM_TOKENS)
    theirs, ours = _both(path)
    assert np.median(kl_divergence(theirs, ours)) <= 2e-4


@pytest.fixture(scope="module")
def deviations() -> dict[Type, float]:
    """Ratios of our distance from exact arithmetic to llama.cpp's, filled by each type's test."""
    return {}


@pytest.mark.parametrize("type", [Type.F16, Type.BF16, *QUANTIZED], ids=lambda t: t.name)
def test_every_tensor_type_agrees(
    type: Type, tmp_path: Path, deviations: dict[Type, float]
) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_tiny(path, variant="k2", type=type, gain=CALM)
    theirs, ours = _both(path)
    assert np.median(kl_divergence(theirs, ours)) <= 5e-3
    deviations[type] = _deviation(path, weights)


def test_we_are_no_farther_from_exact_arithmetic_than_llama_cpp(
    deviations: dict[Type, float],
) -> None:
    measured = [deviations[type] for type in QUANTIZED if type in deviations]
    if len(measured) < len(QUANTIZED):
        pytest.skip("needs the tests of every type in the same run")
    assert np.median(measured) <= 1.0


@pytest.mark.parametrize("type", [Type.F32, Type.F16, Type.BF16], ids=lambda t: t.name)
def test_nothing_but_the_cache_is_rounded_with_float_weights(
    type: Type, tmp_path: Path, exact_kernels: None
) -> None:
    """llama.cpp rounds activations to F16 and BF16, too; in F32 a bf16 cache is 9 times as far."""
    weights = write_tiny(tmp_path / "tiny.gguf", variant="k2", type=type, gain=CALM)
    assert _deviation(tmp_path / "tiny.gguf", weights) <= 1.3


def _deviation(path: Path, weights: dict[str, np.ndarray]) -> float:
    """Compute our distance from exact arithmetic over llama.cpp's, both with their defaults."""
    with hybridmoe.load(path, device="cpu") as llm:
        config = llm.config
        ids = _token_ids(config.vocab_size)
        ours = llm.logits(ids)
    assert config.yarn is not None
    betas = (config.yarn.beta_fast, config.yarn.beta_slow)
    with LlamaCpp(path, context_tokens=NUM_TOKENS, yarn_betas=betas) as peer:
        theirs = peer.logits(ids)
    exact = exact_logits(config, weights, ids)
    return _median_error(exact, ours) / _median_error(exact, theirs)


def _median_error(exact: np.ndarray, logits: np.ndarray) -> float:
    """Compute the median over positions of the relative L2 error."""
    distance = np.linalg.norm(logits - exact, axis=1)
    return float(np.median(distance / np.linalg.norm(exact, axis=1)))


def test_the_comparison_can_see_wrong_yarn_betas(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="k2", type=Type.F32)
    with (
        hybridmoe.load(path, kv_type="f32") as llm,
        hybridmoe.load(path, kv_type="f32", yarn_beta_fast=32.0) as other,
    ):
        ids = _token_ids(llm.config.vocab_size)
        assert np.median(kl_divergence(llm.logits(ids), other.logits(ids))) > 1e-4

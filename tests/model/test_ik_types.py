"""Models of ik_llama.cpp's types: rows that begin with a scale, in RAM and read from disk."""

from pathlib import Path

import numpy as np
import pytest
from exact_network import exact_logits
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.gguf.names import is_expert_tensor
from hybridmoe.gguf.quant_types import QuantType as Q
from hybridmoe.gguf.reader import GGUFFile

IDS = list(range(3, 43))
MIXTURES = {
    "K": {
        "default": Q.IQ4_K, "ffn_gate_exps": Q.IQ2_K, "ffn_up_exps": Q.IQ3_K,
        "ffn_down_exps": Q.IQ5_K, "output": Q.Q6_0, "token_embd": Q.Q6_0,
    },
    "KS": {
        "default": Q.IQ4_KS, "ffn_gate_exps": Q.IQ2_KL, "ffn_up_exps": Q.IQ3_KS,
        "ffn_down_exps": Q.IQ5_KS, "output": Q.IQ4_KSS, "token_embd": Q.IQ2_KS,
    },
}  # fmt: skip


@pytest.mark.parametrize("mixture", MIXTURES)
def test_logits_are_those_of_the_decoded_weights(mixture: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_tiny(path, type=MIXTURES[mixture], layers=2, gain=0.7)
    with GGUFFile.open(path) as file:
        experts = sum(t.num_bytes for t in file.tensors.values() if is_expert_tensor(t.name))
    with hybridmoe.load(path, device="cpu", kv_type="f32") as llm:
        logits, config = llm.logits(IDS), llm.config
    exact = exact_logits(config, weights, IDS)
    error = np.linalg.norm(logits - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(error) < 0.02  # of activations in 8 bits
    with hybridmoe.load(path, device="cpu", kv_type="f32", expert_ram=experts - 1) as llm:
        assert llm.expert_plan is not None
        assert np.array_equal(llm.logits(IDS), logits)

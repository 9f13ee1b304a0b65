"""Embedded GGUF: small, of Kimi K2's architecture, experts in Q4_K, finite router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader

from hybridmoe.demo import demo_path
from hybridmoe.demo.corpus import CHAT_TEMPLATE
from hybridmoe.demo.vocabulary import SPECIAL_TOKENS

LAYERS, EXPERTS = range(5), 32


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(demo_path())


@pytest.fixture(scope="module")
def tensors(reader: GGUFReader) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in reader.tensors}


def value(reader: GGUFReader, key: str) -> Any:
    """Read a metadata field."""
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_file_is_at_most_24_megabytes() -> None:
    assert 1_000_000 < demo_path().stat().st_size <= 24_000_000


def test_metadata_is_kimi_k2s_architecture(reader: GGUFReader) -> None:
    expected = {
        "general.architecture": "deepseek2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "deepseek2.block_count": 5,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_count": EXPERTS,
        "deepseek2.expert_used_count": 4,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.attention.q_lora_rank": 256,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.key_length": 576,
        "deepseek2.attention.value_length": 512,
        "deepseek2.attention.key_length_mla": 128,
        "deepseek2.attention.value_length_mla": 64,
        "deepseek2.rope.dimension_count": 64,
        "deepseek2.rope.freq_base": 50000.0,
    }
    assert {key: value(reader, key) for key in expected} == expected


def test_experts_are_q4_k_and_the_rest_is_q8_0_or_f32(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        kind = Type(tensor.tensor_type)
        if name.endswith("_exps.weight"):
            assert kind == Type.Q4_K, name
            assert tensor.shape.tolist() == [256, 256, EXPERTS], name
        elif tensor.data.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
            assert kind == Type.F32, name
        else:
            assert kind == Type.Q8_0, name


def test_every_layer_has_the_split_mla_tensors(tensors: dict[str, Any]) -> None:
    for layer in LAYERS:
        assert tensors[f"blk.{layer}.attn_k_b.weight"].shape.tolist() == [64, 512, 4]
        assert tensors[f"blk.{layer}.attn_v_b.weight"].shape.tolist() == [512, 64, 4]
        assert tensors[f"blk.{layer}.attn_kv_a_mqa.weight"].shape.tolist() == [256, 576]
        assert tensors[f"blk.{layer}.attn_q_b.weight"].shape.tolist() == [256, 512]
        assert f"blk.{layer}.attn_kv_b.weight" not in tensors
        assert (f"blk.{layer}.exp_probs_b.bias" in tensors) == (layer > 0)


def test_every_f32_tensor_is_finite(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if Type(tensor.tensor_type) == Type.F32:
            assert np.isfinite(tensor.data).all(), name


def test_special_tokens_are_kimi_k2s_and_no_merge_joins_digits(reader: GGUFReader) -> None:
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert tokens[-len(SPECIAL_TOKENS) :] == SPECIAL_TOKENS
    assert tokens[value(reader, "tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert len(tokens) == value(reader, "deepseek2.vocab_size") == len(set(tokens))
    for merge in value(reader, "tokenizer.ggml.merges"):
        assert not any(letter.isdigit() and letter.isascii() for letter in merge), merge

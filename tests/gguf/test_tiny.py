"""Tiny test models: weights, types and vocabulary as requested."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from tiny_config import VARIANTS, tiny_config
from tiny_gguf import write_tiny
from tiny_quantize import ALL_TYPES, SLOW_TYPES, quantize, random_blocks
from tiny_vocab import make_vocabulary

from hybridmoe.config import ModelConfig
from hybridmoe.gguf import GGUFFile

SMALL = {"layers": 2, "hidden": 64, "dense_width": 64, "expert_width": 32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_returned_weights_are_those_of_the_file(tmp_path: Path, variant: str) -> None:
    weights = write_tiny(tmp_path / "x.gguf", variant=variant, type=Q.Q8_0, **SMALL)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert file.tensors.keys() == weights.keys()
        for name, tensor in file.tensors.items():
            assert weights[name].shape == tensor.shape
            decoded = gguf.dequantize(tensor.data, tensor.type)
            assert np.array_equal(decoded, weights[name].ravel())
        ModelConfig.from_metadata(file.metadata)


def test_both_mla_generations_hold_the_same_model(tmp_path: Path) -> None:
    c = tiny_config()
    new = write_tiny(tmp_path / "new.gguf")
    old = write_tiny(tmp_path / "old.gguf", split_kv_b=False)
    for layer in range(c.layers):
        b = f"blk.{layer}.attn_"
        k_b, v_b = new.pop(b + "k_b.weight"), new.pop(b + "v_b.weight")
        assert k_b.shape == (c.heads, c.kv_lora, c.nope) and v_b.shape == (c.heads, c.v, c.kv_lora)
        kv_b = np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1)
        assert np.array_equal(kv_b.reshape(-1, c.kv_lora), old.pop(b + "kv_b.weight"))
    assert new.keys() == old.keys()
    assert all(np.array_equal(new[name], old[name]) for name in new)


def test_a_seed_gives_one_file_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tiny(tmp_path / name, seed=seed, **SMALL)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize(
    "kind", [kind for kind in ALL_TYPES if kind not in SLOW_TYPES], ids=lambda kind: kind.name
)
def test_every_type_keeps_a_matrix_recognisable(kind: Q) -> None:
    values = np.random.default_rng(0).standard_normal((8, 256), np.float32)
    decoded = gguf.dequantize(quantize(values, kind), kind).reshape(values.shape)
    error = np.linalg.norm(decoded - values) / np.linalg.norm(values)
    assert error < (0.9 if kind.name.startswith("TQ") else 0.5)


@pytest.mark.parametrize("kind", SLOW_TYPES, ids=lambda kind: kind.name)
def test_random_blocks_have_the_deviation_asked_for(kind: Q) -> None:
    decoded = gguf.dequantize(random_blocks((2, 16, 512), kind, 0.1, seed=0), kind)
    assert decoded.shape == (2, 16, 512)
    assert np.isclose(decoded.std(), 0.1, rtol=0.01)
    assert abs(decoded.mean()) < 0.01 and len(np.unique(decoded)) > 20


def test_a_role_can_have_its_own_type_and_rows_that_do_not_fit_fall_back(tmp_path: Path) -> None:
    types = {"default": Q.Q4_K, "ffn_down_exps": Q.Q6_K, "token_embd": Q.F16}
    write_tiny(tmp_path / "x.gguf", type=types, layers=2, expert_width=96, dense_width=272)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        found = {name: tensor.type for name, tensor in file.tensors.items()}
    assert found["token_embd.weight"] == Q.F16
    assert found["blk.1.ffn_up_exps.weight"] == Q.Q4_K
    assert found["blk.1.ffn_down_exps.weight"] == Q.Q8_0  # 96 is no multiple of 256
    assert found["blk.0.ffn_down.weight"] == Q.F16  # nor is 272 one of 32
    assert found["blk.1.ffn_gate_inp.weight"] == found["output_norm.weight"] == Q.F32


@pytest.mark.parametrize("pre", ["kimi-k2", "deepseek-v3"])
def test_the_vocabulary_is_sound(pre: str) -> None:
    vocabulary = make_vocabulary(pre)
    tokens = vocabulary.tokens
    assert len(set(tokens)) == len(tokens) == len(vocabulary.types)
    known = set(tokens)
    for merge in vocabulary.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known

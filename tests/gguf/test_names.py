"""Parsed tensor names, and the part of the model that each belongs to."""

import pytest

from hybridmoe.gguf.names import PARTS, TensorName, parse_name, part_of


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("token_embd.weight", (None, "token_embd", "weight"), "embedding"),
        ("output.weight", (None, "output", "weight"), "output"),
        ("output_norm.weight", (None, "output_norm", "weight"), "norm"),
        ("blk.0.attn_norm.weight", (0, "attn_norm", "weight"), "norm"),
        ("blk.60.attn_q_a_norm.weight", (60, "attn_q_a_norm", "weight"), "norm"),
        ("blk.3.attn_kv_a_mqa.weight", (3, "attn_kv_a_mqa", "weight"), "attention"),
        ("blk.3.attn_k_b.weight", (3, "attn_k_b", "weight"), "attention"),
        ("blk.3.attn_output.weight", (3, "attn_output", "weight"), "attention"),
        ("blk.3.ffn_gate_inp.weight", (3, "ffn_gate_inp", "weight"), "router"),
        ("blk.3.exp_probs_b.bias", (3, "exp_probs_b", "bias"), "router"),
        ("blk.3.ffn_down_exps.weight", (3, "ffn_down_exps", "weight"), "routed experts"),
        ("blk.3.ffn_gate_up_exps.weight", (3, "ffn_gate_up_exps", "weight"), "routed experts"),
        ("blk.3.ffn_up_shexp.weight", (3, "ffn_up_shexp", "weight"), "shared expert"),
        ("blk.0.ffn_down.weight", (0, "ffn_down", "weight"), "dense ffn"),
        ("blk.61.nextn.eh_proj.weight", (61, "nextn.eh_proj", "weight"), "other"),
        ("rope_freqs.weight", (None, "rope_freqs", "weight"), "other"),
        ("blk.03.attn_norm.weight", (None, "blk.03.attn_norm", "weight"), "norm"),
        ("blk.9999999.x.weight", (None, "blk.9999999.x", "weight"), "other"),
        ("blk.1.", (None, "blk.1", ""), "other"),
        ("plain", (None, "plain", ""), "other"),
        ("", (None, "", ""), "other"),
    ],
)
def test_a_name_gives_layer_role_suffix_and_part(
    name: str, expected: tuple[int | None, str, str], part: str
) -> None:
    assert parse_name(name) == TensorName(*expected)
    assert part_of(expected[1]) == part
    assert part in PARTS

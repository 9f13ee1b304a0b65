"""Reader of an exported GGUF into the training network: the inverse of `export`.

Weights come back as rounded by Q4_K and Q8_0, close enough to continue training: after a small
change of the corpus that takes an hour instead of a day.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from hybridmoe.demo.network import DemoConfig, DemoNetwork
from hybridmoe.demo.vocabulary import SPECIAL_TOKENS, Vocabulary

__all__ = ["restore"]


def _vocabulary(reader: gguf.GGUFReader) -> Vocabulary:
    """Rebuild the tokenizer; its last tokens are our special ones."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    plain = {text: i for i, text in enumerate(tokens[: -len(SPECIAL_TOKENS)])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return Vocabulary(Tokenizer(BPE(vocab=plain, merges=pairs)))


def _state(weights: dict[str, torch.Tensor], c: DemoConfig) -> dict[str, torch.Tensor]:
    """Build the network's state from float32 tensors by GGUF name."""
    state = {
        "embedding": weights["token_embd.weight"],
        "norm.weight": weights["output_norm.weight"],
        "head": weights["output.weight"],
    }
    for i in range(c.layers):
        old, new = f"blk.{i}.", f"blocks.{i}."
        state[f"{new}attention_norm.weight"] = weights[f"{old}attn_norm.weight"]
        state[f"{new}ffn_norm.weight"] = weights[f"{old}ffn_norm.weight"]
        for theirs, ours in (
            ("attn_q_a", "q_a"), ("attn_q_b", "q_b"), ("attn_kv_a_mqa", "kv_a"),
            ("attn_output", "out"), ("attn_q_a_norm", "q_a_norm"),
            ("attn_kv_a_norm", "kv_a_norm"),
        ):  # fmt: skip
            state[f"{new}attention.{ours}.weight"] = weights[f"{old}{theirs}.weight"]
        k_b = weights[f"{old}attn_k_b.weight"].transpose(1, 2)  # (N, nope, R)
        v_b = weights[f"{old}attn_v_b.weight"]  # (N, value, R)
        state[f"{new}attention.kv_b.weight"] = torch.cat((k_b, v_b), 1).flatten(0, 1)
        if i < c.dense_layers:
            for part in ("gate", "up", "down"):
                state[f"{new}ffn.{part}.weight"] = weights[f"{old}ffn_{part}.weight"]
            continue
        state[f"{new}ffn.router"] = weights[f"{old}ffn_gate_inp.weight"]
        state[f"{new}ffn.bias"] = weights[f"{old}exp_probs_b.bias"]
        gate, up = weights[f"{old}ffn_gate_exps.weight"], weights[f"{old}ffn_up_exps.weight"]
        state[f"{new}ffn.gate_up"] = torch.cat((gate, up), 1)
        state[f"{new}ffn.down"] = weights[f"{old}ffn_down_exps.weight"]
        for part in ("gate", "up", "down"):
            state[f"{new}ffn.shared.{part}.weight"] = weights[f"{old}ffn_{part}_shexp.weight"]
    return state


def restore(path: Path) -> tuple[DemoNetwork, Vocabulary]:
    """Read the network and the vocabulary of a file that `export` wrote."""
    reader = gguf.GGUFReader(path)
    vocabulary = _vocabulary(reader)
    weights = {
        tensor.name: torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
        )
        for tensor in reader.tensors
    }
    network = DemoNetwork(DemoConfig(vocab=vocabulary.size))
    network.load_state_dict(_state(weights, network.c))
    return network, vocabulary

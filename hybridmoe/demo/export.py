"""Export of a checkpoint as GGUF: `python -m hybridmoe.demo.export DIR/checkpoint.pt OUT.gguf`.

Experts become Q4_K by llama.cpp's own quantizer (libggml-base of llama-cpp-python), the other
matrices Q8_0, norms, router and selection bias F32. Layouts are those of llama.cpp's
convert_hf_to_gguf.py for deepseek2, with `attn_k_b` and `attn_v_b` split.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from hybridmoe.demo.corpus import CHAT_TEMPLATE
from hybridmoe.demo.network import DemoConfig
from hybridmoe.demo.vocabulary import SPECIAL_TOKENS, Vocabulary
from hybridmoe.gguf.quant_types import QuantType as Type

__all__ = ["add_tensors", "export", "quantize_q4_k", "tensors"]

# K2 does not mark these as special: parsers read them as text.
_VISIBLE = {token for token in SPECIAL_TOKENS if "tool_call" in token or "think" in token}


def quantize_q4_k(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Quantize float32 rows (a multiple of 256 wide) to Q4_K bytes with llama.cpp's quantizer."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "export needs llama-cpp-python"
    base = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    width = rows.shape[-1]
    flat = np.ascontiguousarray(rows.reshape(-1, width), dtype=np.float32)
    assert width % 256 == 0, f"Q4_K rows are multiples of 256, got {width}"
    out = np.zeros((flat.shape[0], width // 256 * 144), dtype=np.uint8)
    written = base.ggml_quantize_chunk(
        int(Type.Q4_K), flat.ctypes.data, out.ctypes.data, 0, flat.shape[0], width, None
    )
    assert written == out.nbytes, (written, out.nbytes)
    return out.reshape(*rows.shape[:-1], out.shape[-1])


def _add_metadata(writer: gguf.GGUFWriter, c: DemoConfig) -> None:
    """Add the architecture keys of deepseek2."""
    writer.add_name("hybridmoe demo")
    writer.add_description("A small Kimi-K2-architecture model trained by hybridmoe/demo/train.py")
    writer.add_license("mit")
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context_tokens)
    writer.add_embedding_length(c.hidden)
    writer.add_feed_forward_length(c.dense_inter)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(c.vocab)
    writer.add_leading_dense_block_count(c.dense_layers)
    writer.add_q_lora_rank(c.q_lora)
    writer.add_kv_lora_rank(c.kv_lora)
    writer.add_key_length(c.kv_lora + c.rope)
    writer.add_value_length(c.kv_lora)
    writer.add_key_length_mla(c.nope + c.rope)
    writer.add_value_length_mla(c.value)
    writer.add_rope_dimension_count(c.rope)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    writer.add_expert_shared_count(1)
    writer.add_expert_group_count(1)
    writer.add_expert_group_used_count(1)
    writer.add_expert_feed_forward_length(c.expert_inter)
    writer.add_expert_weights_scale(c.routed_scale)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add tokens, merges, special ids and the chat template."""
    tokens = vocabulary.tokens()
    kinds = [gguf.TokenType.NORMAL] * vocabulary.num_plain
    for token in SPECIAL_TOKENS:
        is_visible = token in _VISIBLE
        kinds.append(gguf.TokenType.USER_DEFINED if is_visible else gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges())
    writer.add_bos_token_id(vocabulary.special["[BOS]"])
    writer.add_eos_token_id(vocabulary.end)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_unk_token_id(vocabulary.special["[UNK]"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def tensors(
    state: dict[str, torch.Tensor], c: DemoConfig
) -> list[tuple[str, np.ndarray[Any, Any], Type]]:
    """List the GGUF name, float32 array and type of every tensor."""
    out: list[tuple[str, np.ndarray[Any, Any], Type]] = []

    def add(name: str, tensor: torch.Tensor, kind: Type) -> None:
        out.append((name, tensor.float().contiguous().numpy(), kind))

    add("token_embd.weight", state["embedding"], Type.Q8_0)
    add("output_norm.weight", state["norm.weight"], Type.F32)
    add("output.weight", state["head"], Type.Q8_0)
    for i in range(c.layers):
        old, new = f"blocks.{i}.", f"blk.{i}."
        add(f"{new}attn_norm.weight", state[f"{old}attention_norm.weight"], Type.F32)
        add(f"{new}ffn_norm.weight", state[f"{old}ffn_norm.weight"], Type.F32)
        for ours, theirs, kind in (
            ("q_a", "attn_q_a", Type.Q8_0), ("q_b", "attn_q_b", Type.Q8_0),
            ("kv_a", "attn_kv_a_mqa", Type.Q8_0), ("out", "attn_output", Type.Q8_0),
            ("q_a_norm", "attn_q_a_norm", Type.F32), ("kv_a_norm", "attn_kv_a_norm", Type.F32),
        ):  # fmt: skip
            add(f"{new}{theirs}.weight", state[f"{old}attention.{ours}.weight"], kind)
        kv_b = state[f"{old}attention.kv_b.weight"].view(c.heads, c.nope + c.value, c.kv_lora)
        k_b, v_b = torch.split(kv_b, [c.nope, c.value], 1)
        add(f"{new}attn_k_b.weight", k_b.transpose(1, 2), Type.Q8_0)  # (N, R, nope)
        add(f"{new}attn_v_b.weight", v_b, Type.Q8_0)  # (N, value, R)
        if i < c.dense_layers:
            for part in ("gate", "up", "down"):
                add(f"{new}ffn_{part}.weight", state[f"{old}ffn.{part}.weight"], Type.Q8_0)
            continue
        add(f"{new}ffn_gate_inp.weight", state[f"{old}ffn.router"], Type.F32)
        add(f"{new}exp_probs_b.bias", state[f"{old}ffn.bias"], Type.F32)
        gate, up = state[f"{old}ffn.gate_up"].chunk(2, 1)
        add(f"{new}ffn_gate_exps.weight", gate, Type.Q4_K)
        add(f"{new}ffn_up_exps.weight", up, Type.Q4_K)
        add(f"{new}ffn_down_exps.weight", state[f"{old}ffn.down"], Type.Q4_K)
        for part in ("gate", "up", "down"):
            name = f"{old}ffn.shared.{part}.weight"
            add(f"{new}ffn_{part}_shexp.weight", state[name], Type.Q8_0)
    return out


def add_tensors(
    writer: gguf.GGUFWriter, named: list[tuple[str, np.ndarray[Any, Any], Type]]
) -> None:
    """Add tensors in the types listed for them."""
    for name, array, kind in named:
        if kind == Type.Q4_K:
            writer.add_tensor(name, quantize_q4_k(array), raw_dtype=kind)
        elif kind == Type.F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def export(checkpoint: Path, out: Path) -> None:
    """Write the checkpoint (with vocabulary.json beside it) to `out`, atomically."""
    vocabulary = Vocabulary.load(checkpoint.with_name("vocabulary.json"))
    c = DemoConfig(vocab=vocabulary.size)
    state = torch.load(checkpoint, weights_only=True, mmap=True)["network"]
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "deepseek2")
    _add_metadata(writer, c)
    _add_vocabulary(writer, vocabulary)
    add_tensors(writer, tensors(state, c))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, out)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    export(args.checkpoint, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

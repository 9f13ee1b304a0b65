"""Kimi K2's real sizes as GGUF headers without weights, whole or as the first part of a split."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Q

NUM_PARTS = 13
# moonshotai/Kimi-K2-Instruct, config.json.
KEYS = {
    "block_count": 61, "leading_dense_block_count": 1, "context_length": 131072,
    "embedding_length": 7168, "feed_forward_length": 18432, "attention.head_count": 64,
    "attention.head_count_kv": 1, "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512,
    "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
    "attention.value_length_mla": 128, "rope.dimension_count": 64, "expert_count": 384,
    "expert_used_count": 8, "expert_shared_count": 1, "expert_feed_forward_length": 2048,
    "expert_gating_func": 2, "vocab_size": 163840,
}  # fmt: skip


def better_down(layer: int) -> bool:
    """True where Q4_K_M has Q6_K, written out: layers 0-6, every third from 9 on, and 53-60."""
    return layer < 7 or layer >= 53 or layer in range(9, 53, 3)


def k2_tensors() -> Iterator[tuple[str, tuple[int, ...], Q]]:
    """Name, shape and the type that a Q4_K_M file has."""
    yield "token_embd.weight", (163840, 7168), Q.Q4_K
    yield "output_norm.weight", (7168,), Q.F32
    yield "output.weight", (163840, 7168), Q.Q6_K
    for i in range(61):
        down = Q.Q6_K if better_down(i) else Q.Q4_K
        ffn: dict[str, tuple[tuple[int, ...], Q]]
        if i == 0:
            ffn = {
                "ffn_gate.weight": ((18432, 7168), Q.Q4_K),
                "ffn_up.weight": ((18432, 7168), Q.Q4_K),
                "ffn_down.weight": ((7168, 18432), down),
            }
        else:
            ffn = {
                "ffn_gate_inp.weight": ((384, 7168), Q.F32),
                "exp_probs_b.bias": ((384,), Q.F32),
                "ffn_gate_exps.weight": ((384, 2048, 7168), Q.Q4_K),
                "ffn_up_exps.weight": ((384, 2048, 7168), Q.Q4_K),
                "ffn_down_exps.weight": ((384, 7168, 2048), down),
                "ffn_gate_shexp.weight": ((2048, 7168), Q.Q4_K),
                "ffn_up_shexp.weight": ((2048, 7168), Q.Q4_K),
                "ffn_down_shexp.weight": ((7168, 2048), down),
            }
        layer = {
            "attn_norm.weight": ((7168,), Q.F32),
            "attn_q_a.weight": ((1536, 7168), Q.Q4_K),
            "attn_q_a_norm.weight": ((1536,), Q.F32),
            "attn_q_b.weight": ((12288, 1536), Q.Q4_K),
            "attn_kv_a_mqa.weight": ((576, 7168), Q.Q4_K),
            "attn_kv_a_norm.weight": ((512,), Q.F32),
            "attn_k_b.weight": ((64, 512, 128), Q.Q8_0),
            "attn_v_b.weight": ((64, 128, 512), Q.Q4_K),
            "attn_output.weight": ((7168, 8192), Q.Q4_K),
            "ffn_norm.weight": ((7168,), Q.F32),
            **ffn,
        }
        for role, (shape, type) in layer.items():
            yield f"blk.{i}.{role}", shape, type


def write_k2(path: Path, *, first_layers: int | None = None) -> Path:
    """Write the header: all of it, or the first part of 13 with the tensors of `first_layers`."""
    tensors = list(k2_tensors())
    total = len(tensors)
    if first_layers is not None:
        path = path.with_name(f"{path.stem}-00001-of-{NUM_PARTS:05d}.gguf")
        tensors = [t for t in tensors if layer_of(t[0]) < first_layers]
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_name("Kimi K2")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    for key, value in KEYS.items():
        writer.add_uint32(f"deepseek2.{key}", value)
    writer.add_float32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6)
    if first_layers is not None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", NUM_PARTS)
        writer.add_int32("split.tensors.count", total)
    for name, shape, type in tensors:
        block, block_bytes = GGML_QUANT_SIZES[type]
        sizes = (*shape[:-1], shape[-1] // block * block_bytes)
        writer.add_tensor_info(name, sizes, np.dtype(np.uint8), prod(sizes), type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def layer_of(name: str) -> int:
    """The layer of a tensor; those outside of layers come first."""
    return int(name.split(".")[1]) if name.startswith("blk.") else -1

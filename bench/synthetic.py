"""Write a GGUF of a given shape with random weights, for speed only.

Quantizing gigabytes of random numbers would take hours on a small machine, and speed does not
depend on the values: a block's quants are random bits, its scales are small valid numbers. One
expert's rows are generated once per matrix and rotated for every other, so that no two experts
share memory and the file cannot be compressed into a cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.gguf.quant_types import block_layout, tensor_bytes

Described = tuple[str, tuple[int, ...], Type]  # a tensor's name, shape and type

__all__ = ["GLM_5_2_SLICE", "K2_SLICE", "MOONLIGHT", "Shape", "fill_random", "write_synthetic"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a synthetic model; per layer unless said otherwise."""

    num_layers: int
    num_dense_layers: int
    hidden: int
    dense_inter: int
    num_heads: int
    q_lora_rank: int  # 0 = none
    num_experts: int
    top_k: int
    expert_inter: int
    num_shared_experts: int
    routed_scale: float
    vocab_size: int = 4096
    kv_lora_rank: int = 512
    rope_dim: int = 64
    nope_dim: int = 128
    v_dim: int = 128
    context_tokens: int = 8192
    index_heads: int = 0  # of 128; 0 = no indexer
    index_top_k: int = 2048
    index_every: int = 4  # layers, of which the first has an indexer
    num_mtp_layers: int = 0  # for multi-token prediction, behind the others


# Kimi K2's real layer shapes, with few layers and experts: 5.97 GB, 1.97 GB read per token.
K2_SLICE = Shape(
    num_layers=5, num_dense_layers=1, hidden=7168, dense_inter=18432, num_heads=64,
    q_lora_rank=1536, num_experts=48, top_k=8, expert_inter=2048, num_shared_experts=1,
    routed_scale=2.827,
)  # fmt: skip

# GLM-5.2's real layer shapes: one layer with an indexer and three that use its selection, with few
# experts: 2.3 GB, 1.8 GB read per token.
GLM_5_2_SLICE = Shape(
    num_layers=4, num_dense_layers=0, hidden=6144, dense_inter=12288, num_heads=64,
    q_lora_rank=2048, num_experts=16, top_k=8, expert_inter=2048, num_shared_experts=1,
    routed_scale=2.5, nope_dim=192, v_dim=256, context_tokens=202_752, index_heads=32,
)  # fmt: skip
_INDEX_DIM = 128

# Moonlight-16B-A3B: 27 layers, no q_lora; the down projections fall back to a 32-block type.
MOONLIGHT = Shape(
    num_layers=27, num_dense_layers=1, hidden=2048, dense_inter=11264, num_heads=16,
    q_lora_rank=0, num_experts=64, top_k=6, expert_inter=1408, num_shared_experts=2,
    routed_scale=2.446,
)  # fmt: skip


def write_synthetic(
    path: Path,
    shape: Shape,
    *,
    expert_type: Type = Type.Q4_K,
    dense_type: Type = Type.Q8_0,
    embedding_gain: float = 1.0,
) -> None:
    """Write the file. The same arguments give the same bytes.

    embedding_gain: of 1, what layers add drowns the token, and all tokens go to much the same
    experts; of some hundreds, experts depend on the token as if drawn by lot.
    """
    architecture = "glm-dsa" if shape.index_heads else "deepseek2"
    writer = gguf.GGUFWriter(path, architecture, use_temp_file=False)
    for key, value in _metadata(shape).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_vocabulary(writer, shape.vocab_size)
    rng = np.random.default_rng(1)
    tensors = list(_tensors(shape, expert_type, dense_type))
    for name, dims, type in tensors:
        num_bytes = tensor_bytes(type, dims)
        writer.add_tensor_info(name, dims, np.dtype(np.float32), num_bytes, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims, type in tensors:
        data = np.empty(tensor_bytes(type, dims), np.uint8)
        gain = embedding_gain if name == "token_embd.weight" else 1.0
        fill_random(data, rng, dims, type, gain)
        writer.write_tensor_data(data)
    writer.close()


def _tensors(
    s: Shape, expert_type: Type, dense_type: Type
) -> list[tuple[str, tuple[int, ...], Type]]:
    def fitting(type: Type, cols: int) -> Type:
        """llama.cpp's fallback where rows are no multiple of the block: 32-blocks, else F16."""
        if cols % block_layout(type).weights == 0:
            return type
        return Type.Q5_0 if cols % 32 == 0 else Type.F16

    found: list[Described] = []

    def matrix(name: str, *dims: int, type: Type = dense_type) -> None:
        found.append((f"{name}.weight", dims, fitting(type, dims[-1])))

    def vector(name: str, size: int) -> None:
        found.append((name, (size,), Type.F32))

    num_query = s.num_heads * (s.nope_dim + s.rope_dim)
    matrix("token_embd", s.vocab_size, s.hidden)
    vector("output_norm.weight", s.hidden)
    matrix("output", s.vocab_size, s.hidden)
    for layer in range(s.num_layers + s.num_mtp_layers):
        b = f"blk.{layer}."
        if layer >= s.num_layers:
            matrix(f"{b}nextn.eh_proj", s.hidden, 2 * s.hidden)
            vector(f"{b}nextn.enorm.weight", s.hidden)
            vector(f"{b}nextn.hnorm.weight", s.hidden)
        vector(f"{b}attn_norm.weight", s.hidden)
        if s.q_lora_rank:
            matrix(f"{b}attn_q_a", s.q_lora_rank, s.hidden)
            vector(f"{b}attn_q_a_norm.weight", s.q_lora_rank)
            matrix(f"{b}attn_q_b", num_query, s.q_lora_rank)
        else:
            matrix(f"{b}attn_q", num_query, s.hidden)
        matrix(f"{b}attn_kv_a_mqa", s.kv_lora_rank + s.rope_dim, s.hidden)
        vector(f"{b}attn_kv_a_norm.weight", s.kv_lora_rank)
        matrix(f"{b}attn_k_b", s.num_heads, s.kv_lora_rank, s.nope_dim)
        matrix(f"{b}attn_v_b", s.num_heads, s.v_dim, s.kv_lora_rank)
        matrix(f"{b}attn_output", s.hidden, s.num_heads * s.v_dim)
        if s.index_heads and layer % s.index_every == 0:
            matrix(f"{b}indexer.attn_q_b", s.index_heads * _INDEX_DIM, s.q_lora_rank)
            matrix(f"{b}indexer.attn_k", _INDEX_DIM, s.hidden)
            vector(f"{b}indexer.k_norm.weight", _INDEX_DIM)
            vector(f"{b}indexer.k_norm.bias", _INDEX_DIM)
            matrix(f"{b}indexer.proj", s.index_heads, s.hidden, type=Type.F32)
        vector(f"{b}ffn_norm.weight", s.hidden)
        if layer < s.num_dense_layers:
            matrix(f"{b}ffn_gate", s.dense_inter, s.hidden)
            matrix(f"{b}ffn_up", s.dense_inter, s.hidden)
            matrix(f"{b}ffn_down", s.hidden, s.dense_inter)
            continue
        matrix(f"{b}ffn_gate_inp", s.num_experts, s.hidden, type=Type.F32)
        vector(f"{b}exp_probs_b.bias", s.num_experts)
        experts = (s.num_experts, s.expert_inter, s.hidden)
        matrix(f"{b}ffn_gate_exps", *experts, type=expert_type)
        matrix(f"{b}ffn_up_exps", *experts, type=expert_type)
        matrix(f"{b}ffn_down_exps", s.num_experts, s.hidden, s.expert_inter, type=expert_type)
        shared = s.num_shared_experts * s.expert_inter
        matrix(f"{b}ffn_gate_shexp", shared, s.hidden)
        matrix(f"{b}ffn_up_shexp", shared, s.hidden)
        matrix(f"{b}ffn_down_shexp", s.hidden, shared)
    return found


# Where a block keeps its float16 scales: byte offsets. Everything else in a block may be random.
_SCALES: Mapping[Type, tuple[int, ...]] = {
    Type.Q8_0: (0,), Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2),
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2),
    Type.Q6_K: (208,), Type.IQ2_XXS: (0,), Type.IQ2_XS: (0,), Type.IQ2_S: (0,), Type.IQ3_XXS: (0,),
    Type.IQ3_S: (0,), Type.IQ1_S: (0,), Type.IQ4_NL: (0,), Type.IQ4_XS: (0,), Type.TQ1_0: (52,),
    Type.TQ2_0: (64,), Type.IQ1_M: (), Type.MXFP4: (), Type.NVFP4: (), Type.Q1_0: (0,),
    Type.Q2_0: (0,), Type.Q6_0: (0,), Type.IQ2_K: (0,), Type.IQ3_K: (0,), Type.IQ4_K: (0,),
    Type.IQ5_K: (0,), Type.IQ6_K: (0,),
    **dict.fromkeys((Type.IQ2_KS, Type.IQ2_KL, Type.IQ3_KS), ()),  # these have one of each row
    **dict.fromkeys((Type.IQ4_KS, Type.IQ4_KSS, Type.IQ5_KS), ()),
}  # fmt: skip

# Of codes times their scales, where these are integers of many sizes; of the other types about 200.
_MAGNITUDES: Mapping[Type, int] = {
    Type.IQ3_K: 600, Type.IQ4_K: 1300, Type.IQ5_K: 1300, Type.IQ4_KS: 4500, Type.IQ4_KSS: 4500,
    Type.IQ5_KS: 4500, Type.IQ6_K: 5000,
}  # fmt: skip


def fill_random(
    data: NDArray[np.uint8],
    rng: np.random.Generator,
    dims: tuple[int, ...],
    type: Type,
    gain: float = 1.0,
) -> None:
    """Fill the bytes of a tensor (..., rows, cols): one random matrix, rotated for the others."""
    one = _random_rows(rng, dims, type, gain).reshape(-1, data.size // int(np.prod(dims[:-1])))
    for e, matrix in enumerate(data.reshape(-1, *one.shape)):
        shift = e % len(one)
        matrix[shift:], matrix[:shift] = one[: len(one) - shift], one[len(one) - shift :]


def _random_rows(
    rng: np.random.Generator, dims: tuple[int, ...], type: Type, gain: float
) -> NDArray[np.uint8]:
    rows, cols = dims[-2] if len(dims) > 1 else 1, dims[-1]
    if type in (Type.F32, Type.F16, Type.BF16):
        values = rng.standard_normal((rows, cols), np.float32) * np.float32(gain * cols**-0.5)
        if len(dims) == 1:
            values = np.ones_like(values)  # a norm
        if type == Type.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float32 if type == Type.F32 else np.float16).view(np.uint8)
    layout = block_layout(type)
    one = rng.integers(0, 256, (rows, cols // layout.weights, layout.num_bytes), np.uint8)
    exact_scale = gain * cols**-0.5 / _MAGNITUDES.get(type, 200)  # keeps activations near 1
    if layout.row_scale_bytes:
        row_scale = np.full((rows, 1), exact_scale, f"<f{layout.row_scale_bytes}").view(np.uint8)
        return np.concatenate((row_scale, one.reshape(rows, -1)), 1)
    scale = np.float16(exact_scale)
    for offset in _SCALES[type]:
        one[..., offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    if type == Type.MXFP4:
        one[..., 0] = 118  # 2^-9: the block's exponent
    elif type == Type.NVFP4:
        one[..., :4] = 8  # 2^-6, once for each 16 weights
    elif type == Type.IQ1_M:  # a nibble of the scale at the top of each of four words
        nibbles = int(scale.view(np.uint16)) >> np.array([0, 4, 8, 12]) & 15
        one[..., 49:56:2] = one[..., 49:56:2] & 15 | nibbles.astype(np.uint8) << 4
    return one


def _metadata(s: Shape) -> dict[str, object]:
    indexer = {
        "attention.indexer.head_count": s.index_heads,
        "attention.indexer.key_length": _INDEX_DIM,
        "attention.indexer.top_k": s.index_top_k,
        "attention.indexer.types": [i % s.index_every == 0 for i in range(s.num_layers)],
    }
    return {
        **(indexer if s.index_heads else {}),
        "block_count": s.num_layers + s.num_mtp_layers,
        **({"nextn_predict_layers": s.num_mtp_layers} if s.num_mtp_layers else {}),
        "leading_dense_block_count": s.num_dense_layers,
        "context_length": s.context_tokens,
        "embedding_length": s.hidden,
        "feed_forward_length": s.dense_inter,
        "attention.head_count": s.num_heads,
        "attention.head_count_kv": 1,
        **({"attention.q_lora_rank": s.q_lora_rank} if s.q_lora_rank else {}),
        "attention.kv_lora_rank": s.kv_lora_rank,
        "attention.key_length": s.kv_lora_rank + s.rope_dim,
        "attention.value_length": s.kv_lora_rank,
        "attention.key_length_mla": s.nope_dim + s.rope_dim,
        "attention.value_length_mla": s.v_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": s.rope_dim,
        "rope.freq_base": 50000.0,
        "expert_count": s.num_experts,
        "expert_used_count": s.top_k,
        "expert_shared_count": s.num_shared_experts,
        "expert_feed_forward_length": s.expert_inter,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": s.routed_scale,
        "vocab_size": s.vocab_size,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        assert isinstance(value, float), key
        writer.add_float32(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Byte tokens in GPT-2's alphabet, one merge, then names: any of them shows as text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = [alphabet[b] for b in range(256)]
    tokens += ["ab", *(f"[{i}]" for i in range(vocab_size - 258)), "<|im_end|>"]
    kinds = [gguf.TokenType.NORMAL] * (vocab_size - 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocab_size - 1)

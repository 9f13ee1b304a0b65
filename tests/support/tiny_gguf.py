"""Write small random GGUFs that llama.cpp loads too, and return their weights.

Any field of `TinyConfig` can be given to `write_tiny`. A tensor's values depend on the seed and
its name only, and both MLA generations are cut from one matrix: with `type=F32` the files with
`split_kv_b` on and off hold the same model. (IQ1 and IQ2 blocks are random, not quantized.)
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from tiny_config import TinyConfig, tiny_config
from tiny_quantize import IK_TYPES, RANDOM_TYPES, quantize, random_blocks
from tiny_vocab import make_vocabulary

from hybridmoe.gguf.quant_types import block_layout
from hybridmoe.kernels.reference_dequantize import dequantize_rows

F32 = GGMLQuantizationType.F32
TypeChoice = GGMLQuantizationType | Mapping[str, GGMLQuantizationType]


def write_tiny(
    path: Path | str,
    *,
    variant: str = "k2",
    type: TypeChoice = F32,
    seed: int = 0,
    metadata: Mapping[str, object] | None = None,
    **overrides: object,
) -> dict[str, np.ndarray]:
    """Write the file; return every tensor as float32, decoded from what the file really holds.

    `type` is one type for all matrices, or a mapping from role (`ffn_down_exps`, `token_embd`)
    to type with an optional `default`; norms, the router and its bias are always F32. A matrix
    whose rows are no multiple of the block gets Q8_0, or F16 where even that does not fit.
    `metadata` adds or replaces keys (str, bool, int as uint32, float as float32, list); None
    removes one. Shapes are in C order: (rows, row length), or (experts, rows, row length).
    """
    config = tiny_config(variant, **overrides)
    keys = {**_model_keys(config), **_tokenizer_keys(config), **(metadata or {})}
    writer = gguf.GGUFWriter(path, config.arch)
    for key, value in keys.items():
        if value is not None:
            _add(writer, key, value)
    weights: dict[str, np.ndarray] = {}
    for name, values in _tensors(config, seed):
        chosen = _choose_type(type, name, values)
        factors = np.ones(1, np.float32)
        if config.scaled and chosen == GGMLQuantizationType.NVFP4:
            factors = _add_factors(writer, name, values, seed)
        over = factors.reshape(-1, *[1] * (values.ndim - 1))
        data = _encode(values / over, chosen, zlib.crc32(name.encode(), seed))
        raw = None if chosen in (F32, GGMLQuantizationType.F16) else chosen
        if chosen in IK_TYPES:  # gguf-py counts the weights of bytes of its own types only
            writer.add_tensor(name, data.view(np.int8), values.shape, raw_dtype=raw)
            held = dequantize_rows(data.reshape(-1, data.shape[-1]), chosen).reshape(values.shape)
        else:
            writer.add_tensor(name, data, raw_dtype=raw)
            held = gguf.dequantize(data, chosen).astype(np.float32).reshape(values.shape)
        weights[name] = held * over
    _finish(writer)
    return weights


def _add_factors(writer: gguf.GGUFWriter, name: str, values: np.ndarray, seed: int) -> np.ndarray:
    """Write the factors of a matrix, or of each expert, and those of its activations."""
    size = len(values) if "_exps." in name else 1
    stem = name.removesuffix("weight")
    factors = np.exp(_normal(seed, f"{stem}scale", size))
    writer.add_tensor(f"{stem}scale", factors)
    writer.add_tensor(f"{stem}input_scale", np.full(size, 0.02, np.float32))
    return factors


def requantize(path: Path | str, type: TypeChoice | None, out: Path | str) -> dict[str, np.ndarray]:
    """Write a file's model with other types for its matrices; returns what `write_tiny` returns.

    type: None leaves all as it is.
    """
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    _copy_metadata(reader, writer)
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        shape = tuple(map(int, reversed(tensor.shape)))
        values = gguf.dequantize(np.array(tensor.data), tensor.tensor_type).reshape(shape)
        chosen, data = tensor.tensor_type, np.array(tensor.data)
        if type is not None:
            chosen = _choose_type(type, tensor.name, values)
            data = quantize(values, chosen)
        raw = None if chosen in (F32, GGMLQuantizationType.F16) else chosen
        writer.add_tensor(tensor.name, data, raw_dtype=raw)
        weights[tensor.name] = gguf.dequantize(data, chosen).astype(np.float32).reshape(shape)
    _finish(writer)
    return weights


def split_file(path: Path | str, parts: int) -> list[Path]:
    """Rewrite a GGUF as `parts` files `<stem>-0000i-of-0000n.gguf` beside it."""
    path = Path(path)
    reader = gguf.GGUFReader(path)
    per_part = -(-len(reader.tensors) // parts)
    assert -(-len(reader.tensors) // per_part) == parts, f"cannot make {parts} parts"
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_part)
    _copy_metadata(reader, writer)
    for tensor in reader.tensors:
        plain = tensor.tensor_type in (F32, GGMLQuantizationType.F16)
        raw = None if plain else tensor.tensor_type
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=raw)
    del reader
    names = writer.format_shard_names(path)
    _finish(writer)
    return names


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _encode(values: np.ndarray, type: GGMLQuantizationType, seed: int) -> np.ndarray:
    if type in RANDOM_TYPES:
        return random_blocks(values.shape, type, float(values.std()), seed)
    return quantize(values, type)


def _choose_type(choice: TypeChoice, name: str, values: np.ndarray) -> GGMLQuantizationType:
    role = name.split(".")[-2]
    if values.ndim == 1 or role in ("ffn_gate_inp", "proj"):  # proj: the indexer's
        return F32
    if isinstance(choice, Mapping):
        default = choice.get(role, choice.get("default", F32))
        choice = choice.get(name.removesuffix(".weight"), default)
    for candidate in (choice, GGMLQuantizationType.Q8_0):
        if values.shape[-1] % block_layout(candidate).weights == 0:
            return candidate
    return GGMLQuantizationType.F16


def _tensors(c: TinyConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    def matrix(name: str, *shape: int, gain: float = c.gain) -> tuple[str, np.ndarray]:
        return name, _normal(seed, name, *shape) * np.float32(gain / shape[-1] ** 0.5)

    def norm(name: str, size: int) -> tuple[str, np.ndarray]:
        return name, 1 + np.float32(0.1) * _normal(seed, name, size)

    # Deep random models are chaotic: what a layer adds shrinks with their number.
    back = c.gain * min(1.0, 3 / c.layers)
    num_tokens = len(make_vocabulary(c.pre).tokens)
    token_embd = "token_embd.weight"
    yield matrix(token_embd, num_tokens, c.hidden, gain=0.7 * c.hidden**0.5)
    for layer in range(c.layers + c.mtp):
        b = f"blk.{layer}."
        yield norm(b + "attn_norm.weight", c.hidden)
        q_rows = c.heads * (c.nope + c.rope)
        if c.q_lora is None:
            yield matrix(b + "attn_q.weight", q_rows, c.hidden)
        else:
            yield matrix(b + "attn_q_a.weight", c.q_lora, c.hidden)
            yield norm(b + "attn_q_a_norm.weight", c.q_lora)
            yield matrix(b + "attn_q_b.weight", q_rows, c.q_lora)
        yield matrix(b + "attn_kv_a_mqa.weight", c.kv_lora + c.rope, c.hidden)
        yield norm(b + "attn_kv_a_norm.weight", c.kv_lora)
        name, kv_b = matrix(b + "attn_kv_b.weight", c.heads, c.nope + c.v, c.kv_lora)
        if c.split_kv_b:
            k_b, v_b = kv_b[:, : c.nope].transpose(0, 2, 1), kv_b[:, c.nope :]
            flat = (-1,) if c.flat_kv_b else (c.heads, -1)
            yield b + "attn_k_b.weight", k_b.reshape(*flat, c.nope)
            yield b + "attn_v_b.weight", v_b.reshape(*flat, c.kv_lora)
            if c.both_kv_b:
                yield name, np.zeros_like(kv_b).reshape(-1, c.kv_lora)
        else:
            yield name, kv_b.reshape(-1, c.kv_lora)
        yield matrix(b + "attn_output.weight", c.hidden, c.heads * c.v, gain=back)
        if c.index_heads and (c.index_types is None or [*c.index_types, True][layer]):
            yield matrix(b + "indexer.attn_q_b.weight", c.index_heads * c.index_dim, c.q_lora or 0)
            yield matrix(b + "indexer.attn_k.weight", c.index_dim, c.hidden)
            yield norm(b + "indexer.k_norm.weight", c.index_dim)
            bias = b + "indexer.k_norm.bias"
            yield bias, np.float32(0.1) * _normal(seed, bias, c.index_dim)
            yield matrix(b + "indexer.proj.weight", c.index_heads, c.hidden)
        yield norm(b + "ffn_norm.weight", c.hidden)
        if layer < c.dense_layers:
            yield matrix(b + "ffn_gate.weight", c.dense_width, c.hidden)
            yield matrix(b + "ffn_up.weight", c.dense_width, c.hidden)
            yield matrix(b + "ffn_down.weight", c.hidden, c.dense_width, gain=back)
            continue
        yield matrix(b + "ffn_gate_inp.weight", c.experts, c.hidden)
        if c.selection_bias:
            bias = b + "exp_probs_b.bias"
            yield bias, np.float32(0.1) * _normal(seed, bias, c.experts)
        gate_up = [
            matrix(b + f"ffn_{part}_exps.weight", c.experts, c.expert_width, c.hidden)
            for part in ("gate", "up")
        ]
        if c.fused_gate_up:
            yield b + "ffn_gate_up_exps.weight", np.concatenate([m for _, m in gate_up], axis=1)
        else:
            yield from gate_up
        yield matrix(b + "ffn_down_exps.weight", c.experts, c.hidden, c.expert_width, gain=back)
        if c.shared:
            shared_width = c.shared * c.expert_width
            yield matrix(b + "ffn_gate_shexp.weight", shared_width, c.hidden)
            yield matrix(b + "ffn_up_shexp.weight", shared_width, c.hidden)
            yield matrix(b + "ffn_down_shexp.weight", c.hidden, shared_width, gain=back)
    if c.mtp:
        b = f"blk.{c.layers}.nextn."
        name, noise = matrix(b + "eh_proj.weight", c.hidden, 2 * c.hidden, gain=0.2)
        noise[:, : c.hidden] += np.eye(c.hidden, dtype=np.float32)  # as if the token tells most
        yield name, noise
        yield norm(b + "enorm.weight", c.hidden)
        yield norm(b + "hnorm.weight", c.hidden)
        if c.mtp_own:
            yield matrix(b + "embed_tokens.weight", num_tokens, c.hidden, gain=0.7 * c.hidden**0.5)
            yield norm(b + "shared_head_norm.weight", c.hidden)
            yield matrix(b + "shared_head_head.weight", num_tokens, c.hidden, gain=2.0)
    yield norm("output_norm.weight", c.hidden)
    if not c.tied:
        yield matrix("output.weight", num_tokens, c.hidden, gain=2.0)


def _normal(seed: int, name: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.standard_normal(shape, np.float32)


def _model_keys(c: TinyConfig) -> dict[str, object]:
    head = c.nope + c.rope
    keys: dict[str, object] = {
        "block_count": c.layers + c.mtp,
        "nextn_predict_layers": 1 if c.mtp else None,
        "context_length": c.context,
        "embedding_length": c.hidden,
        "feed_forward_length": c.dense_width,
        "attention.head_count": c.heads,
        "attention.head_count_kv": 1 if c.split_kv_b else c.heads,
        "attention.layer_norm_rms_epsilon": c.eps,
        "attention.q_lora_rank": c.q_lora,
        "attention.kv_lora_rank": c.kv_lora,
        "attention.key_length": c.kv_lora + c.rope if c.split_kv_b else head,
        "attention.value_length": c.kv_lora if c.split_kv_b else c.v,
        "attention.key_length_mla": head if c.split_kv_b else None,
        "attention.value_length_mla": c.v if c.split_kv_b else None,
        "leading_dense_block_count": c.dense_layers,
        "vocab_size": len(make_vocabulary(c.pre).tokens),
        "expert_count": c.experts,
        "expert_used_count": c.top_k,
        "expert_shared_count": c.shared,
        "expert_feed_forward_length": c.expert_width,
        "expert_group_count": c.n_group,
        "expert_group_used_count": c.topk_group,
        "expert_gating_func": c.gating,
        "expert_weights_norm": True if c.norm_weights else None,
        "expert_weights_scale": c.scale,
        "attention.temperature_scale": c.temperature_scale,
        "attention.temperature_length": c.temperature_length if c.temperature_scale else None,
        "rope.dimension_count": c.rope,
        "rope.freq_base": c.theta,
    }
    if c.index_heads is not None:
        keys |= {
            "attention.indexer.head_count": c.index_heads,
            "attention.indexer.key_length": c.index_dim,
            "attention.indexer.top_k": c.index_top_k,
            "attention.indexer.types": None if c.index_types is None else list(c.index_types),
        }
    if c.yarn_factor is not None:
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": c.yarn_factor,
            "rope.scaling.original_context_length": c.yarn_original_context,
            "rope.scaling.yarn_log_multiplier": c.yarn_log_multiplier,
            "rope.scaling.yarn_beta_fast": c.yarn_beta_fast,
            "rope.scaling.yarn_beta_slow": c.yarn_beta_slow,
        }
    return {"general.name": "tiny", **{f"{c.arch}.{key}": v for key, v in keys.items()}}


def _tokenizer_keys(c: TinyConfig) -> dict[str, object]:
    vocabulary = make_vocabulary(c.pre)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": c.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.bos_token_id": vocabulary.bos_id,
        "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
        "tokenizer.ggml.padding_token_id": vocabulary.pad_id,
        "tokenizer.ggml.add_bos_token": c.pre != "kimi-k2",
        "tokenizer.chat_template": c.chat_template,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_key_value(key, value, GGUFValueType.STRING)
    else:
        assert isinstance(value, list), (key, value)
        writer.add_array(key, value)

"""Table of the deepseek2 family's tensors, with a check that refuses all others.

Without the check, the network would silently run without a tensor that is in the file but not in
the table: a scale beside a weight, a router's bias under another name.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from hybridmoe.config import GATE_SIGMOID, GATE_SOFTMAX, ModelConfig
from hybridmoe.errors import UnsupportedModelError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.names import FUSED_ROLE, parse_name

__all__ = ["check_tensor_names", "has_mtp_layer", "read_config", "tensor_shapes"]


def read_config(metadata: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read a model's configuration, and check the names of its tensors.

    Errors: GGUFError, UnsupportedModelError.
    """
    config = ModelConfig.from_metadata(metadata)
    check_tensor_names(config, names)
    return config


def check_tensor_names(config: ModelConfig, names: Collection[str]) -> None:
    """Refuse tensors that the network would not use. Errors: UnsupportedModelError.

    Layers of multi-token prediction change no response; their tensors may have any name.
    """
    known = _known_names(config)
    unrun = range(config.num_layers, config.num_layers + config.num_mtp_layers)
    unknown = [n for n in names if n not in known and parse_name(n).layer not in unrun]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        if parse_name(unknown[0]).role == "exp_probs_b" and config.gate == GATE_SOFTMAX:
            raise UnsupportedModelError(
                f"tensor {printable(unknown[0])}{more}: a router's bias belongs to a sigmoid gate,"
                f" expert_gating_func {GATE_SIGMOID}; this file's says softmax, or is missing"
            )
        raise UnsupportedModelError(
            f"tensor {printable(unknown[0])}{more}: unknown in this architecture; the network"
            " would run without it"
        )
    _refuse_both(names)


def _known_names(config: ModelConfig) -> set[str]:
    known = set[str]()
    if (indexer := config.indexer) is not None:  # one that is declared unused may be there
        every = (True,) * config.num_layers
        config = replace(config, indexer=replace(indexer, is_full=every))
    for is_new in (False, True):
        for name, shape in tensor_shapes(config, is_old=not is_new, is_fused=is_new):
            known.add(name)
            if len(shape) > 1:
                stem = name.removesuffix("weight")
                known |= {f"{stem}scale", f"{stem}input_scale"}
    return known


def _refuse_both(names: Collection[str]) -> None:
    """Refuse layers that have gate and up in one tensor, and apart as well."""
    for name in names:
        block, fused, _ = name.partition(f"{FUSED_ROLE}.")
        for role in ("ffn_gate_exps", "ffn_up_exps") if fused else ():
            if (other := f"{block}{role}.weight") in names:
                raise UnsupportedModelError(
                    f"tensor {printable(other)}: beside {printable(name)}, which holds the same;"
                    " one of them would not be used"
                )


def has_mtp_layer(config: ModelConfig, names: Collection[str]) -> bool:
    """Test whether the first MTP layer is in a file; some announce it, and leave it out."""
    block, optional = f"blk.{config.num_layers}.", ".nextn.shared_head_norm.weight"
    tables = (
        tensor_shapes(config, is_old=is_old, is_fused=is_fused)
        for is_old, is_fused in product((False, True), repeat=2)
    )
    return config.has_mtp and any(
        all(
            name in names
            for name, _ in table
            if name.startswith(block) and not name.endswith(optional)
        )
        for table in tables
    )


def tensor_shapes(
    c: ModelConfig, *, is_old: bool = False, is_fused: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the tensors of a model, as in docs/formats.md.

    is_old: the key and value projections of the latent are one tensor. is_fused: an expert's gate
    and up are.
    """
    yield "token_embd.weight", (c.vocab_size, c.hidden)
    yield "output_norm.weight", (c.hidden,)
    yield "output.weight", (c.vocab_size, c.hidden)
    for layer in range(c.num_layers):
        for shapes in (
            _attention_shapes(c, is_old), _indexer_shapes(c, layer), _ffn_shapes(c, layer, is_fused)
        ):  # fmt: skip
            for role, shape in shapes:
                yield f"blk.{layer}.{role}", shape
    for layer in range(c.num_layers, c.num_layers + c.num_mtp_layers if c.has_mtp else 0):
        for shapes in (
            _attention_shapes(c, is_old), _ffn_shapes(c, layer, is_fused), _mtp_shapes(c)
        ):  # fmt: skip
            for role, shape in shapes:
                yield f"blk.{layer}.{role}", shape


def _mtp_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List what a layer for multi-token prediction has besides; some have a head of their own."""
    yield "nextn.eh_proj.weight", (c.hidden, 2 * c.hidden)
    for role in ("enorm", "hnorm", "shared_head_norm"):
        yield f"nextn.{role}.weight", (c.hidden,)


def _attention_shapes(c: ModelConfig, is_old: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    num_query = c.num_heads * c.qk_dim
    yield "attn_norm.weight", (c.hidden,)
    if c.q_lora_rank:
        yield "attn_q_a.weight", (c.q_lora_rank, c.hidden)
        yield "attn_q_a_norm.weight", (c.q_lora_rank,)
        yield "attn_q_b.weight", (num_query, c.q_lora_rank)
    else:
        yield "attn_q.weight", (num_query, c.hidden)
    yield "attn_kv_a_mqa.weight", (c.latent_dim, c.hidden)
    yield "attn_kv_a_norm.weight", (c.kv_lora_rank,)
    if is_old:
        yield "attn_kv_b.weight", (c.num_heads * (c.nope_dim + c.v_dim), c.kv_lora_rank)
    else:
        yield "attn_k_b.weight", (c.num_heads, c.kv_lora_rank, c.nope_dim)
        yield "attn_v_b.weight", (c.num_heads, c.v_dim, c.kv_lora_rank)
    yield "attn_output.weight", (c.hidden, c.num_heads * c.v_dim)
    yield "ffn_norm.weight", (c.hidden,)


def _indexer_shapes(c: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    indexer = c.indexer
    if indexer is None or not indexer.is_full[layer]:
        return
    yield "indexer.attn_q_b.weight", (indexer.num_heads * indexer.key_dim, c.q_lora_rank)
    yield "indexer.attn_k.weight", (indexer.key_dim, c.hidden)
    yield "indexer.k_norm.weight", (indexer.key_dim,)
    yield "indexer.k_norm.bias", (indexer.key_dim,)
    yield "indexer.proj.weight", (indexer.num_heads, c.hidden)


def _ffn_shapes(
    c: ModelConfig, layer: int, is_fused: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if layer < c.num_dense_layers:
        yield "ffn_gate.weight", (c.dense_inter, c.hidden)
        yield "ffn_up.weight", (c.dense_inter, c.hidden)
        yield "ffn_down.weight", (c.hidden, c.dense_inter)
        return
    yield "ffn_gate_inp.weight", (c.num_experts, c.hidden)
    if c.gate == GATE_SIGMOID:
        yield "exp_probs_b.bias", (c.num_experts,)
    if is_fused:
        yield f"{FUSED_ROLE}.weight", (c.num_experts, 2 * c.expert_inter, c.hidden)
    else:
        yield "ffn_gate_exps.weight", (c.num_experts, c.expert_inter, c.hidden)
        yield "ffn_up_exps.weight", (c.num_experts, c.expert_inter, c.hidden)
    yield "ffn_down_exps.weight", (c.num_experts, c.hidden, c.expert_inter)
    if c.num_shared_experts:
        yield "ffn_gate_shexp.weight", (c.shared_inter, c.hidden)
        yield "ffn_up_shexp.weight", (c.shared_inter, c.hidden)
        yield "ffn_down_shexp.weight", (c.hidden, c.shared_inter)

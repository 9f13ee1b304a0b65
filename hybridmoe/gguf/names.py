"""GGUF tensor names: `blk.3.ffn_down_exps.weight` -> layer 3, role `ffn_down_exps`, `weight`.

Knows llama.cpp's naming for deepseek2 and its relatives, but not the tensors that a model requires.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

__all__ = [
    "FUSED_ROLE",
    "MTP_EMBEDDING",
    "MTP_HEAD",
    "PARTS",
    "TensorName",
    "is_expert_tensor",
    "parse_name",
    "part_of",
    "unused_names",
]

PARTS = (
    "embedding",
    "attention",
    "router",
    "shared expert",
    "dense ffn",
    "routed experts",
    "norm",
    "output",
    "other",  # tensors of other architectures, rope_freqs, multi-token prediction
)

# An expert's gate rows, then its up rows (llama.cpp #19139).
FUSED_ROLE = "ffn_gate_up_exps"

_EXPERT_ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", FUSED_ROLE)
MTP_EMBEDDING = "nextn.embed_tokens"  # of a layer for multi-token prediction, if its own
MTP_HEAD = "nextn.shared_head_head"

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)
_PART_OF_ROLE = {
    "token_embd": "embedding",
    "output": "output",
    "ffn_gate_inp": "router",
    "exp_probs_b": "router",
    "ffn_gate": "dense ffn",
    "ffn_up": "dense ffn",
    "ffn_down": "dense ffn",
}


class TensorName(NamedTuple):
    """Parsed tensor name; the last dot separates role and suffix."""

    layer: int | None  # None: not in a block
    role: str
    suffix: str  # "weight", "bias"; "" if the name has no dot


def parse_name(name: str) -> TensorName:
    """Parse a name. Never fails, since files of other models are listed, too."""
    match = _BLOCK.fullmatch(name)
    layer = int(match[1]) if match else None
    rest = match[2] if match else name
    role, dot, suffix = rest.rpartition(".")
    return TensorName(layer, role, suffix) if dot else TensorName(layer, rest, "")


def is_expert_tensor(name: str) -> bool:
    """Return True for a stack of routed experts' matrices."""
    _, role, suffix = parse_name(name)
    return role in _EXPERT_ROLES and suffix == "weight"


def unused_names(names: Collection[str]) -> set[str]:
    """List the tensors that the network leaves out without harm.

    `attn_kv_b` beside the split `attn_k_b` and `attn_v_b` is the same once more (ik_llama.cpp's
    converter). `input_scale` is for products of FP4 activations, which are not rounded here.
    """
    known = set(names)
    found = {name for name in known if parse_name(name).suffix == "input_scale"}
    for name in known:
        block, old, suffix = name.partition("attn_kv_b.")
        split = (f"{block}attn_k_b.weight", f"{block}attn_v_b.weight")
        if old and suffix and known.issuperset(split):
            found.add(name)
    return found


def part_of(role: str) -> str:
    """Return the part of the model (one of `PARTS`) that a role belongs to."""
    if role in _PART_OF_ROLE:
        return _PART_OF_ROLE[role]
    if role.endswith("_norm"):
        return "norm"
    if role.endswith("_shexp"):
        return "shared expert"
    if role.endswith("_exps"):
        return "routed experts"
    return "attention" if role.startswith(("attn_", "indexer.")) else "other"

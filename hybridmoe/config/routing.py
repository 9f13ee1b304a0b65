"""Routed experts: their sizes and the rule that chooses them, with their keys in GGUF metadata."""

from dataclasses import dataclass
from typing import Any

from hybridmoe.errors import UnsupportedModelError
from hybridmoe.metadata_keys import MetadataKeys

__all__ = ["GATE_SIGMOID", "GATE_SOFTMAX", "RoutingSpec", "default_gate", "read_experts"]

# `expert_gating_func` in the GGUF specification. 0 and absent mean softmax (DeepSeek-V2), except in
# GLM-5 files (llama.cpp's glm-dsa.cpp), and in GLM-4.7-Flash files of January 2026, known by their
# sizes (llama.cpp #18980; block 48 is for MTP).
GATE_SOFTMAX = 1
GATE_SIGMOID = 2
_GLM_FLASH_BLOCKS, _GLM_FLASH_VOCAB = (47, 48), 154_880


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """Rule by which a router's scores become expert ids and weights."""

    top_k: int
    is_sigmoid: bool  # else softmax
    is_normalized: bool  # a token's weights sum to 1 before `scale`
    scale: float = 1.0
    num_groups: int = 1  # 1 = no group limit
    num_groups_used: int = 1


def default_gate(architecture: str, num_blocks: int, vocab_size: int) -> int:
    """Return the gate of files that do not name it."""
    is_glm_flash = num_blocks in _GLM_FLASH_BLOCKS and vocab_size == _GLM_FLASH_VOCAB
    return GATE_SIGMOID if is_glm_flash or architecture == "glm-dsa" else GATE_SOFTMAX


def read_experts(keys: MetadataKeys, layers: range, absent_gate: int) -> dict[str, Any]:
    """Read the fields of `ModelConfig` about experts, which `layers` have.

    Errors: GGUFError, UnsupportedModelError.
    """
    has_experts = len(layers) > 0
    num_experts = keys.count("expert_count", layers=layers) if has_experts else 0
    num_groups = keys.count("expert_group_count", default=1, least=0, most=max(1, num_experts))
    num_groups = num_groups or 1  # 0 means none
    if num_experts % num_groups:
        raise keys.bad(
            "expert_group_count",
            num_groups,
            f"a divisor of {num_experts} experts: groups that lost some to pruning are undefined",
        )
    num_groups_used = 1
    if num_groups > 1:
        num_groups_used = keys.count("expert_group_used_count", default=num_groups, most=num_groups)
    reachable = num_experts // num_groups * num_groups_used
    gate = keys.count("expert_gating_func", default=0, least=0, most=1 << 16)
    gate = gate or absent_gate
    if has_experts and gate not in (GATE_SOFTMAX, GATE_SIGMOID):
        raise UnsupportedModelError(
            f"{keys.prefix}expert_gating_func is {gate}; supported: 1 (softmax), 2 (sigmoid)"
        )
    return {
        "num_experts": num_experts,
        "top_k": (
            keys.count("expert_used_count", most=reachable, layers=layers) if has_experts else 0
        ),
        "expert_inter": (
            keys.count("expert_feed_forward_length", layers=layers) if has_experts else 0
        ),
        "num_shared_experts": keys.count("expert_shared_count", default=0, least=0, most=1 << 16),
        "gate": gate,
        "normalize_weights": keys.flag("expert_weights_norm", default=False),
        "routed_scale": keys.number("expert_weights_scale", default=0.0) or 1.0,  # 0 means none
        "num_groups": num_groups,
        "num_groups_used": num_groups_used,
    }

"""Which experts a token goes to, and with what weight.

One function for the whole family: DeepSeek-V2 and V2-Lite (softmax scores), DeepSeek-V3, Kimi K2
and Moonlight (sigmoid scores; a per-expert bias selects, the unbiased score weighs), with or
without a limit on expert groups. Sources: DeepSeek-V2 (arXiv 2405.04434), sections 2.2.1-2.2.3;
DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 4.2; auxiliary-loss-free balancing (2408.15664).
"""

import torch
from torch import Tensor

from hybridmoe.config import GATE_SIGMOID, ModelConfig

__all__ = ["route"]


def route(logits: Tensor, bias: Tensor | None, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Choose top_k experts per token.

    Shapes: logits (T, E) f32 · bias (E,) f32 or None -> ids (T, K) int32, weights (T, K) f32.
    """
    is_sigmoid = config.gate == GATE_SIGMOID
    scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    choice = scores if bias is None else scores + bias
    if config.num_groups_used < config.num_groups:
        choice = _mask_groups(choice, config, best_two=is_sigmoid)
    ids = choice.topk(config.top_k, dim=-1).indices  # (T, K)
    weights = scores.gather(-1, ids)
    if config.normalize_weights:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return ids.to(torch.int32), weights * config.routed_scale


def _mask_groups(choice: Tensor, config: ModelConfig, *, best_two: bool) -> Tensor:
    """-inf for every expert outside a token's best groups.

    A group counts as the sum of its two best experts in V3, as its best expert in V2.
    """
    grouped = choice.view(choice.shape[0], config.num_groups, -1)  # (T, G, E / G)
    num_counted = min(2, grouped.shape[-1]) if best_two else 1
    strength = grouped.topk(num_counted, dim=-1).values.sum(dim=-1)  # (T, G)
    kept = strength.topk(config.num_groups_used, dim=-1).indices
    outside = torch.ones_like(strength, dtype=torch.bool).scatter(-1, kept, False)
    return grouped.masked_fill(outside[..., None], float("-inf")).view_as(choice)

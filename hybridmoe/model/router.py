"""Which experts a token goes to, and with what weight.

One function for the whole family: DeepSeek-V2 and V2-Lite (softmax scores), DeepSeek-V3, Kimi K2
and Moonlight (sigmoid scores; a per-expert bias selects, the unbiased score weighs), with or
without a limit on expert groups: a group counts as the sum of its two best experts in V3, as its
best expert in V2, and experts outside a token's best groups are out of the running. Sources:
DeepSeek-V2 (arXiv 2405.04434), sections 2.2.1-2.2.3; DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2
and 4.2; auxiliary-loss-free balancing (2408.15664).
"""

from torch import Tensor

from hybridmoe.config import GATE_SIGMOID, ModelConfig
from hybridmoe.kernels.device import Device

__all__ = ["route"]


def route(
    device: Device, logits: Tensor, bias: Tensor | None, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts per token.

    Shapes: logits (T, E) f32 · bias (E,) f32 or None -> ids (T, K) int32, weights (T, K) f32.
    """
    return device.route(
        logits,
        bias,
        config.top_k,
        num_groups=config.num_groups,
        num_groups_used=config.num_groups_used,
        is_sigmoid=config.gate == GATE_SIGMOID,
        is_normalized=config.normalize_weights,
        scale=config.routed_scale,
    )

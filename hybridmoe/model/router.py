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
from hybridmoe.device.interface import Device
from hybridmoe.model.weights import BlockWeights

__all__ = ["Router", "Routing", "route"]

Routing = tuple[Tensor, Tensor]  # ids (T, K) int32 and weights (T, K) f32 of one layer


class Router:
    """One layer's."""

    def __init__(self, block: BlockWeights, config: ModelConfig) -> None:
        """Bind the layer's tensors. Errors: GGUFError."""
        self._device = block.device
        self._config = c = config
        self._matrix = block.matrix("ffn_gate_inp", c.num_experts, c.hidden)
        has_bias = c.gate == GATE_SIGMOID
        self._bias = block.vector("exp_probs_b", c.num_experts, "bias") if has_bias else None

    def __call__(self, x: Tensor) -> Routing:
        """The experts of states (T, H) after the layer's norm."""
        logits = self._device.linear(x, self._matrix)
        return route(self._device, logits, self._bias, self._config)


def route(device: Device, logits: Tensor, bias: Tensor | None, config: ModelConfig) -> Routing:
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

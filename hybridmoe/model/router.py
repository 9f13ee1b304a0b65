"""Router: chooses the experts of a token, and their weights.

One function for the whole family: DeepSeek-V2 and V2-Lite (softmax scores), DeepSeek-V3, Kimi K2
and Moonlight (sigmoid scores; a per-expert bias selects, the unbiased score weighs), with or
without a limit on expert groups: a group counts as the sum of its two best experts in V3, as its
best expert in V2, and experts outside a token's best groups are out of the running. Sources:
DeepSeek-V2 (arXiv 2405.04434), sections 2.2.1-2.2.3; DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2
and 4.2; auxiliary-loss-free balancing (2408.15664).
"""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice, quantized
from hybridmoe.kernels.fused_layer import RoutedWeights, SwigluWeights
from hybridmoe.model.weights import BlockWeights

__all__ = ["Router", "Routing"]

Routing = tuple[Tensor, Tensor]  # ids (T, K) int32 and weights (T, K) f32 of one layer


class Router:
    """Router of one layer."""

    def __init__(self, block: BlockWeights, config: ModelConfig) -> None:
        """Bind the layer's tensors. Errors: GGUFError."""
        self._device = block.device
        self._spec, num_experts = config.routing, config.num_experts
        self._matrix = block.matrix("ffn_gate_inp", num_experts, config.hidden)
        has_bias = self._spec.is_sigmoid
        self._bias = block.vector("exp_probs_b", num_experts, "bias") if has_bias else None

    def __call__(self, x: Tensor) -> Routing:
        """Choose the experts of states (T, H) after the layer's norm."""
        logits = self._device.linear(x, self._matrix)
        return self._device.route(logits, self._bias, self._spec)

    def with_experts(self, experts: SwigluWeights) -> RoutedWeights | None:
        """Return the router's weights with its experts', or None but on the CPU."""
        if type(self._device) is not CpuDevice:
            return None
        return RoutedWeights(quantized(self._matrix), self._bias, self._spec, experts)

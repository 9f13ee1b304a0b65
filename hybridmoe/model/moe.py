"""Feed-forward networks of a layer: a dense SwiGLU, or routed experts plus a shared expert."""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice, quantized
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.kernels.fused_layer import FusedFfn, SwigluWeights
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.router import Router, Routing
from hybridmoe.model.weights import BlockWeights

__all__ = ["DenseFfn", "MoeFfn"]


class DenseFfn:
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (GLU variants)."""

    def __init__(self, block: BlockWeights, hidden: int, inter: int, suffix: str = "") -> None:
        self._device = block.device
        self._gate = block.matrix(f"ffn_gate{suffix}", inter, hidden)
        self._up = block.matrix(f"ffn_up{suffix}", inter, hidden)
        self._down = block.matrix(f"ffn_down{suffix}", hidden, inter)

    def forward(self, x: Tensor, base: Pending | None = None) -> Tensor:
        """Map x (T, H) to (T, H), plus `base` if given."""
        return self._device.dense_ffn(x, self._gate, self._up, self._down, base)

    def weights(self) -> SwigluWeights | None:
        """Weights on the CPU, or None."""
        if type(self._device) is not CpuDevice:
            return None
        return SwigluWeights(quantized(self._gate), quantized(self._up), quantized(self._down))

    def fused(self, norm: RmsNorm) -> FusedFfn | None:
        """Return `norm` and this as one call; None but on the CPU."""
        weights = self.weights()
        return None if weights is None else FusedFfn(norm.weight, norm.eps, None, weights)


class MoeFfn:
    """Weighted sum of a token's routed experts, plus the shared expert."""

    def __init__(
        self, block: BlockWeights, layer: int, c: ModelConfig, experts: ExpertBackend
    ) -> None:
        self._layer = layer
        self._experts = experts
        self._router = Router(block, c)
        self._shared = (
            DenseFfn(block, c.hidden, c.shared_inter, "_shexp") if c.num_shared_experts else None
        )

    def forward(self, x: Tensor, trace: list[Routing] | None = None) -> Tensor:
        """Map x (T, H) to (T, H). The routing is appended to `trace`."""
        ids, weights = self._router(x)
        if trace is not None:
            trace.append((ids, weights))
        routed = self._experts.submit(self._layer, x, ids, weights)
        return routed.result() if self._shared is None else self._shared.forward(x, routed)

    def fused(self, norm: RmsNorm) -> FusedFfn | None:
        """Return `norm` and this as one call; None unless the CPU computes all, from memory."""
        experts, routed = self._experts.weights_in_memory(self._layer), None
        if experts is not None:
            routed = self._router.with_experts(SwigluWeights(*experts))
        shared = None if self._shared is None else self._shared.weights()
        if routed is None or (shared is None) != (self._shared is None):
            return None
        return FusedFfn(norm.weight, norm.eps, routed, shared)

    def hint_prefetch(self, x: Tensor) -> None:
        """Hint the backend at the experts of states like x (T, H), before they get here."""
        self._experts.prefetch(self._layer, self._router(x)[0])

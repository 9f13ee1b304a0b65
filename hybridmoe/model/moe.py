"""The feed-forward half of a layer: one dense SwiGLU, or routed experts beside a shared one."""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.experts.backends import ExpertBackend
from hybridmoe.kernels.ops import dense_ffn, linear
from hybridmoe.model.router import route
from hybridmoe.model.weights import BlockWeights

__all__ = ["DenseFfn", "MoeFfn"]


class DenseFfn:
    """down(silu(gate(x)) * up(x)); Shazeer 2020 (GLU variants)."""

    def __init__(self, block: BlockWeights, hidden: int, inter: int, suffix: str = "") -> None:
        self._gate = block.matrix(f"ffn_gate{suffix}", inter, hidden)
        self._up = block.matrix(f"ffn_up{suffix}", inter, hidden)
        self._down = block.matrix(f"ffn_down{suffix}", hidden, inter)

    def forward(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """(T, H) -> (T, H), added to `base` where there is one."""
        return dense_ffn(x, self._gate, self._up, self._down, base)


class MoeFfn:
    """Routed experts, weighted and summed, plus the shared expert that every token uses."""

    def __init__(
        self, block: BlockWeights, layer: int, c: ModelConfig, experts: ExpertBackend
    ) -> None:
        self._layer = layer
        self._config = c
        self._experts = experts
        self._router = block.matrix("ffn_gate_inp", c.num_experts, c.hidden)
        has_bias = block.has("exp_probs_b", "bias")
        self._bias = block.vector("exp_probs_b", c.num_experts, "bias") if has_bias else None
        self._shared = (
            DenseFfn(block, c.hidden, c.shared_inter, "_shexp") if c.num_shared_experts else None
        )

    def forward(self, x: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """(T, H) -> (T, H). The chosen experts, (T, K) int32, are appended to `trace`."""
        ids, weights = self._route(x)
        if trace is not None:
            trace.append(ids)
        routed = self._experts.forward(self._layer, x, ids, weights)
        return routed if self._shared is None else self._shared.forward(x, base=routed)

    def guess(self, x: Tensor) -> None:
        """Tell the executor which experts states like x (T, H) go to, before they are here."""
        self._experts.expect(self._layer, self._route(x)[0])

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return route(linear(x, self._router), self._bias, self._config)

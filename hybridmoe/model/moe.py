"""The feed-forward half of a layer: one dense SwiGLU, or routed experts beside a shared one."""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.policy import PREFILL_TOKENS
from hybridmoe.model.router import Router, Routing
from hybridmoe.model.weights import BlockWeights

__all__ = ["DenseFfn", "MoeFfn"]


class DenseFfn:
    """down(silu(gate(x)) * up(x)); Shazeer 2020 (GLU variants)."""

    def __init__(self, block: BlockWeights, hidden: int, inter: int, suffix: str = "") -> None:
        self._device = block.device
        self._gate = block.matrix(f"ffn_gate{suffix}", inter, hidden)
        self._up = block.matrix(f"ffn_up{suffix}", inter, hidden)
        self._down = block.matrix(f"ffn_down{suffix}", hidden, inter)

    def forward(self, x: Tensor, base: Pending | None = None) -> Tensor:
        """(T, H) -> (T, H), added to `base` where there is one."""
        return self._device.dense_ffn(x, self._gate, self._up, self._down, base)


class MoeFfn:
    """Routed experts, weighted and summed, plus the shared expert that every token uses."""

    def __init__(
        self,
        block: BlockWeights,
        layer: int,
        c: ModelConfig,
        experts: ExpertBackend,
        num_deferred: int = 0,
    ) -> None:
        """num_deferred: of a token's experts, the least weighted, that `forward` leaves owing."""
        self._layer = layer
        self._experts = experts
        self._num_deferred = num_deferred
        self._router = Router(block, c)
        self._shared = (
            DenseFfn(block, c.hidden, c.shared_inter, "_shexp") if c.num_shared_experts else None
        )

    def forward(
        self, x: Tensor, trace: list[Routing] | None = None, owed: Pending | None = None
    ) -> tuple[Tensor, Pending | None]:
        """(T, H) -> (T, H), `owed` included, and what is owed to the next layer.

        The chosen experts and their weights are appended to `trace`.
        """
        ids, weights = self._router(x)
        if trace is not None:
            trace.append((ids, weights))
        later = None
        if self._num_deferred and len(ids) <= PREFILL_TOKENS:
            ids, deferred = _split(ids, weights, self._num_deferred)
            routed = self._experts.submit(self._layer, x, ids, weights)
            later = self._experts.submit(self._layer, x, deferred, weights)
        else:
            routed = self._experts.submit(self._layer, x, ids, weights)
        if owed is not None:
            routed = owed + routed
        return routed.result() if self._shared is None else self._shared.forward(x, routed), later

    def guess(self, x: Tensor) -> None:
        """Tell the executor which experts states like x (T, H) go to, before they are here."""
        self._experts.prefetch(self._layer, self._router(x)[0])


def _split(ids: Tensor, weights: Tensor, num_deferred: int) -> tuple[Tensor, Tensor]:
    """Ids (T, K) without each token's `num_deferred` least weighted, and those alone."""
    rank = weights.argsort(dim=1, stable=True).argsort(1)  # 0 = the least weighted
    is_deferred = rank < num_deferred
    return ids.masked_fill(is_deferred, -1), ids.masked_fill(~is_deferred, -1)

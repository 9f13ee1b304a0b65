"""Feed-forward networks of a layer: a dense SwiGLU, or routed experts plus a shared expert."""

from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS, ModelConfig
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend
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


class MoeFfn:
    """Weighted sum of a token's routed experts, plus the shared expert."""

    def __init__(
        self,
        block: BlockWeights,
        layer: int,
        c: ModelConfig,
        experts: ExpertBackend,
        num_deferred: int = 0,
    ) -> None:
        """num_deferred: a token's least weighted experts that `forward` returns as pending."""
        self._layer = layer
        self._experts = experts
        self._num_deferred = num_deferred
        self._router = Router(block, c)
        self._shared = (
            DenseFfn(block, c.hidden, c.shared_inter, "_shexp") if c.num_shared_experts else None
        )

    def forward(
        self, x: Tensor, trace: list[Routing] | None = None, deferred: Pending | None = None
    ) -> tuple[Tensor, Pending | None]:
        """Map x (T, H) to (T, H), plus the previous layer's `deferred`; return this layer's too.

        Prefill defers nothing. The routing is appended to `trace`.
        """
        ids, weights = self._router(x)
        if trace is not None:
            trace.append((ids, weights))
        to_defer: Pending | None = None
        if self._num_deferred and len(ids) <= PREFILL_TOKENS:
            ids, deferred_ids = _split(ids, weights, self._num_deferred)
            routed = self._experts.submit(self._layer, x, ids, weights)
            to_defer = self._experts.submit(self._layer, x, deferred_ids, weights)
        else:
            routed = self._experts.submit(self._layer, x, ids, weights)
        if deferred is not None:
            routed = deferred + routed
        if self._shared is None:
            return routed.result(), to_defer
        return self._shared.forward(x, routed), to_defer

    def hint_prefetch(self, x: Tensor) -> None:
        """Hint the backend at the experts of states like x (T, H), before they get here."""
        self._experts.prefetch(self._layer, self._router(x)[0])


def _split(ids: Tensor, weights: Tensor, num_deferred: int) -> tuple[Tensor, Tensor]:
    """Split ids (T, K) into those to add now and each token's `num_deferred` least weighted."""
    rank = weights.argsort(dim=1, stable=True).argsort(1)  # 0 = least weighted
    is_deferred = rank < num_deferred
    return ids.masked_fill(is_deferred, -1), ids.masked_fill(~is_deferred, -1)

"""Layer of the network: attention and FFN, each behind its norm."""

from collections.abc import Callable

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.interface import Pages, Tables
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.kernels.fused_layer import FusedAttention, FusedFfn, takes_few_tokens
from hybridmoe.kernels.paged_mla import KvPages
from hybridmoe.model.indexer import Selector
from hybridmoe.model.mla import LatentAttention
from hybridmoe.model.moe import DenseFfn, MoeFfn
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import BlockWeights

__all__ = ["Layer"]


class Layer:
    """Attention and FFN of one layer, each behind its norm."""

    def __init__(
        self,
        block: BlockWeights,
        i: int,
        c: ModelConfig,
        experts: ExpertBackend,
        selector: Selector | None,
    ) -> None:
        """Bind the weights. selector: of the keys attended to; None = all. Errors: GGUFError."""
        device = block.device
        self._attention_norm = RmsNorm(device, block.vector("attn_norm", c.hidden), c.rms_eps)
        self._attention = LatentAttention(block, c, selector)
        self._ffn_norm = RmsNorm(device, block.vector("ffn_norm", c.hidden), c.rms_eps)
        self._ffn: DenseFfn | MoeFfn
        if i < c.num_dense_layers:
            self._ffn = DenseFfn(block, c.hidden, c.dense_inter)
        else:
            self._ffn = MoeFfn(block, i, c, experts)
        self._fused_attention = self._attention.fused(self._attention_norm)
        self._fused_ffn = self._ffn.fused(self._ffn_norm)
        self.observer: Callable[[Tensor], None] | None = None  # of the states after attention

    @property
    def fused(self) -> tuple[FusedAttention, FusedFfn] | None:
        """Both halves as native calls, for steps of few tokens, unless it is observed."""
        attention, ffn = self._fused_attention, self._fused_ffn
        if attention is None or ffn is None or self.observer is not None:
            return None
        return attention, ffn

    def hint_to(self, following: "Layer") -> None:
        """Send prefetch hints for `following`, made by its router from this layer's states."""
        ffn, norm = following._ffn, following._ffn_norm
        if isinstance(ffn, MoeFfn):
            self.observer = lambda x: ffn.hint_prefetch(norm(x))

    def append(self, x: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor) -> None:
        """Append tokens to the KV cache alone."""
        self._attention.append(self._attention_norm(x), pages, tables, cos_sin)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        pages: Pages,
        tables: Tables,
        cos_sin: Tensor,
        trace: list[Routing] | None,
    ) -> Tensor:
        """Add the previous layer's `residual` to x (T, H) in place; return this layer's."""
        if self._fused_attention is not None and takes_few_tokens(tables):
            assert isinstance(pages, KvPages)
            residual = self._fused_attention.forward(x, residual, pages, tables, cos_sin)
        else:
            residual = self._attention.forward(
                self._attention_norm(x, residual), pages, tables, cos_sin
            )
        if self._fused_ffn is not None and self.observer is None:
            return self._fused_ffn.forward(x, residual, trace)
        normed = self._ffn_norm(x, residual)
        if self.observer is not None:
            self.observer(x)
        if isinstance(self._ffn, MoeFfn):
            return self._ffn.forward(normed, trace)
        return self._ffn.forward(normed)

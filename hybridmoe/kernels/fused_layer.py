"""Halves of a decoder layer on the CPU as one call each, with the bits of their steps.

All threads wait while Python runs between two kernels, and decoding has a dozen of them a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import RoutingSpec
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import check_tensor
from hybridmoe.kernels.paged_mla import BlockTables, KvPages

__all__ = [
    "FUSED_TOKENS",
    "AttentionWeights",
    "FusedAttention",
    "FusedFfn",
    "FusedLayers",
    "RoutedWeights",
    "SwigluWeights",
    "takes_few_tokens",
]

# Of a step, at most: what a layer computes of each waits in memory that stays (K2: 0.4 MB a token).
FUSED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Weights of multi-head latent attention, as `model.mla` has them."""

    q_a: QuantMatrix | None  # None: q_b takes the normed states
    q_a_norm: Tensor | None
    q_b: QuantMatrix
    kv_a: QuantMatrix
    kv_a_norm: Tensor
    k_b: QuantMatrix
    v_b: QuantMatrix
    out: QuantMatrix
    scale: float


class SwigluWeights(NamedTuple):
    """Gate, up and down: of one network, or of all experts."""

    gate: QuantMatrix
    up: QuantMatrix
    down: QuantMatrix


@dataclass(frozen=True, slots=True)
class RoutedWeights:
    """Routed experts that are all in memory, and their router."""

    router: QuantMatrix
    bias: Tensor | None
    spec: RoutingSpec
    experts: SwigluWeights


@dataclass(frozen=True, eq=False, slots=True)
class FusedAttention:
    """Norm and dense attention in latent space. Errors: ShapeError."""

    norm: Tensor
    eps: float
    weights: AttentionWeights
    handle: _C.FusedAttention = field(init=False, repr=False)

    def __post_init__(self) -> None:
        w, hidden = self.weights, self.weights.kv_a.cols
        _check_vector(self.norm, "norm", hidden)
        _check_vector(w.kv_a_norm, "kv_a_norm", w.k_b.rows)
        if w.q_a is not None:
            assert w.q_a_norm is not None, "q_a without its norm"
            _check_vector(w.q_a_norm, "q_a_norm", w.q_a.rows)
        handle = _C.FusedAttention(
            self.norm.data_ptr(),
            self.eps,
            None if w.q_a is None else w.q_a.handle,
            0 if w.q_a_norm is None else w.q_a_norm.data_ptr(),
            w.q_b.handle,
            w.kv_a.handle,
            w.kv_a_norm.data_ptr(),
            w.k_b.handle,
            w.v_b.handle,
            w.out.handle,
            w.scale,
        )
        object.__setattr__(self, "handle", handle)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        pages: KvPages,
        tables: BlockTables,
        cos_sin: Tensor,
    ) -> Tensor:
        """Add `residual` to x in place, append the tokens to the KV cache, and attend.

        Shapes: x, residual (T, H) f32 · cos_sin (T, rope) f32 -> (T, H) f32.
        """
        tokens = _check_states(x, residual, self.weights.kv_a.cols)
        _check_rotations(cos_sin, tokens, pages.dim - self.weights.k_b.rows)
        out = torch.empty_like(x)
        self.handle.forward(
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            tokens,
            pages.handle,
            *tables.arguments,
            cos_sin.data_ptr(),
            out.data_ptr(),
        )
        return out


@dataclass(frozen=True, eq=False, slots=True)
class FusedFfn:
    """Norm and routed experts, a dense network, or both. Errors: ShapeError."""

    norm: Tensor
    eps: float
    routed: RoutedWeights | None
    dense: SwigluWeights | None
    handle: _C.FusedFfn = field(init=False, repr=False)

    def __post_init__(self) -> None:
        routed = None
        if (r := self.routed) is not None:
            if r.bias is not None:
                _check_vector(r.bias, "bias", r.router.rows)
            if not 1 <= r.spec.top_k <= r.router.rows:
                raise ShapeError(f"fused layer: {r.spec.top_k} of {r.router.rows} experts")
            routed = _C.RoutedSwiglu(
                r.router.handle,
                0 if r.bias is None else r.bias.data_ptr(),
                r.spec.top_k,
                r.spec.num_groups,
                r.spec.num_groups_used,
                r.spec.is_sigmoid,
                r.spec.is_normalized,
                r.spec.scale,
                _swiglu(r.experts),
            )
        _check_vector(self.norm, "norm", self._hidden)
        dense = None if self.dense is None else _swiglu(self.dense)
        handle = _C.FusedFfn(self.norm.data_ptr(), self.eps, routed, dense)
        object.__setattr__(self, "handle", handle)

    def forward(
        self, x: Tensor, residual: Tensor | None, trace: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Add `residual` to x in place, and compute the network of the normed states.

        Shapes: x, residual (T, H) f32 -> (T, H) f32. trace: receives ids (T, k) int32 and weights
        (T, k) f32 of routed experts.
        """
        tokens, top_k = _check_states(x, residual, self._hidden), self.top_k
        ids = torch.empty((tokens, top_k), dtype=torch.int32, device="cpu")
        weights = torch.empty((tokens, top_k), dtype=torch.float32, device="cpu")
        out = torch.empty_like(x)
        self.handle.forward(
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            tokens,
            ids.data_ptr(),
            weights.data_ptr(),
            out.data_ptr(),
        )
        if trace is not None and self.routed is not None:
            trace.append((ids, weights))
        return out

    @property
    def top_k(self) -> int:
        """Experts of a token; 0 without routed ones."""
        return 0 if self.routed is None else self.routed.spec.top_k

    @property
    def _hidden(self) -> int:
        weights = self.dense if self.routed is None else self.routed.experts
        assert weights is not None, "a network of nothing"
        return weights.gate.cols


class FusedLayers:
    """Consecutive layers as one call. Errors: ShapeError."""

    def __init__(self, layers: Sequence[tuple[FusedAttention, FusedFfn]]) -> None:
        """Take the layers; those with routed experts choose the same number for a token."""
        self._layers = layers  # keeps their weights alive
        self.handle = _C.FusedLayers([a.handle for a, _ in layers], [f.handle for _, f in layers])
        self.num_layers = len(layers)
        routed = [ffn.top_k for _, ffn in layers if ffn.top_k]
        self._num_routed, self._top_k = len(routed), max(routed, default=0)
        first = layers[0][0].weights
        self.hidden, self.rope_dim = first.kv_a.cols, first.kv_a.rows - first.k_b.rows

    def forward(
        self,
        x: Tensor,
        pages: Sequence[KvPages],
        tables: BlockTables,
        cos_sin: Tensor,
        trace: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Map the states x (T, H) f32 of a step to those behind the last layer, in place.

        pages: of each layer. cos_sin: (T, rope) f32. trace: as for `FusedFfn.forward`.
        """
        tokens = _check_states(x, None, self.hidden)
        _check_rotations(cos_sin, tokens, self.rope_dim)
        shape = (self._num_routed, tokens, self._top_k)
        ids = torch.empty(shape, dtype=torch.int32, device="cpu")
        weights = torch.empty(shape, dtype=torch.float32, device="cpu")
        self.handle.forward(
            _C.LayerPages([p.handle for p in pages]),
            x.data_ptr(),
            tokens,
            *tables.arguments,
            cos_sin.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
        )
        if trace is not None:
            trace.extend(zip(ids, weights, strict=True))


def takes_few_tokens(tables: object) -> TypeGuard[BlockTables]:
    """Tell whether a step is small and attends in latent space, as the fused attention does."""
    return (
        isinstance(tables, BlockTables)
        and tables.num_tokens <= FUSED_TOKENS
        and tables.num_expanded == 0
    )


def _swiglu(weights: SwigluWeights) -> _C.Swiglu:
    return _C.Swiglu(*(w.handle for w in weights))


def _check_states(x: Tensor, residual: Tensor | None, hidden: int) -> int:
    check_tensor(x, "fused layer: x", torch.float32, 2, hidden)
    if residual is not None:
        check_tensor(residual, "fused layer: residual", torch.float32, 2, hidden)
        if len(residual) != len(x):
            raise ShapeError(f"fused layer: x has {len(x)} tokens, residual {len(residual)}")
    return len(x)


def _check_rotations(cos_sin: Tensor, tokens: int, dim: int) -> None:
    check_tensor(cos_sin, "fused layer: cos_sin", torch.float32, 2, dim)
    if len(cos_sin) != tokens:
        raise ShapeError(f"fused layer: {len(cos_sin)} rotations of {tokens} tokens")


def _check_vector(values: Tensor, name: str, size: int) -> None:
    check_tensor(values, f"fused layer: {name}", torch.float32, 1, size)

"""The CPU kernels as functions of torch tensors: shapes are checked here, numbers made in csrc.

All tensors are contiguous and on the CPU. A token's result is the same bits whatever else is in
the batch and however many threads run. Products with a quantised matrix round the activations to
int8 in blocks of 32 with a float32 scale, then add exact integer dot products: csrc/README.md says
why, tests/closeness.py how far that can be off. reference.py has the same functions in plain numpy.
"""

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.kernels import isa
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.topology import num_threads, set_num_threads

__all__ = [
    "QuantMatrix",
    "batched_linear",
    "dequantize",
    "expert_ffn",
    "gather_rows",
    "isa",
    "latent_attention",
    "linear",
    "num_threads",
    "set_num_threads",
]


def linear(x: Tensor, w: QuantMatrix) -> Tensor:
    """x W^T.

    Shapes:  x (T, K) f32 · w one matrix (N, K) -> (T, N) f32.
    Cost:    reads w once for every four tokens, from a cache after the first.
    Errors:  ShapeError.
    """
    _check(x, "linear: x", torch.float32, 2, w.cols)
    if w.batch != 1:
        raise ShapeError(f"linear: w is a stack of {w.batch} matrices, expected one")
    tokens = x.shape[0]
    out = _empty(tokens, w.rows)  # (T, N)
    _C.linear(x.data_ptr(), tokens, w.handle, out.data_ptr())
    return out


def batched_linear(x: Tensor, w: QuantMatrix) -> Tensor:
    """x[b] W[b]^T for every matrix of a stack: the per-head products of latent attention.

    Shapes:  x (B, T, K) f32 · w B matrices (N, K) -> (B, T, N) f32.
    Errors:  ShapeError.
    """
    _check(x, "batched_linear: x", torch.float32, 3, w.cols)
    batch, tokens, _ = x.shape
    if batch != w.batch:
        raise ShapeError(f"batched_linear: x has {batch} batches, w {w.batch}")
    out = _empty(batch, tokens, w.rows)  # (B, T, N)
    _C.linear(x.data_ptr(), tokens, w.handle, out.data_ptr())
    return out


def expert_ffn(
    x: Tensor, ids: Tensor, weights: Tensor, gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix
) -> Tensor:
    """The weighted SwiGLU output of each token's experts.

    Shapes:  x (T, H) f32 · ids (T, k) int32, -1 = none · weights (T, k) f32 ·
             gate, up (E, I, H) · down (E, H, I) -> (T, H) f32.
    Cost:    reads each distinct expert once per call (per four of its tokens, from a cache).
    Numeric: the product silu(gate) * up is rounded to int8 again where `down` is quantised.
    Errors:  ShapeError, also for an id outside -1..E-1.
    Source:  SwiGLU, Shazeer 2020.
    """
    _check(x, "expert_ffn: x", torch.float32, 2, gate.cols)
    tokens, top_k = ids.shape if ids.ndim == 2 else (-1, -1)
    _check(ids, "expert_ffn: ids", torch.int32, 2, top_k)
    _check(weights, "expert_ffn: weights", torch.float32, 2, top_k)
    if not tokens == x.shape[0] == weights.shape[0]:
        raise ShapeError(
            f"expert_ffn: x has {x.shape[0]} tokens, ids {tokens}, weights {weights.shape[0]}"
        )
    out = torch.empty_like(x)  # (T, H)
    _C.expert_ffn(
        x.data_ptr(),
        ids.data_ptr(),
        weights.data_ptr(),
        tokens,
        top_k,
        gate.handle,
        up.handle,
        down.handle,
        out.data_ptr(),
    )
    return out


def latent_attention(
    latent_queries: Tensor, rope_queries: Tensor, latents: Tensor, scale: float
) -> Tensor:
    """Causal softmax attention of the last T of S positions over latents, absorbed MLA.

    Shapes:  latent_queries (N, T, R) f32 · rope_queries (T, N, P) f32 · latents (S, R + P) f32, the
             first R of each row also its value -> (N, T, R) f32.
    Cost:    2 N T S (2 R + P) operations in float32, half of them where T = S.
    Numeric: softmax over blocks of 256 positions, put together in order; no score is rounded.
    Errors:  ShapeError.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1; online softmax, Milakov & Gimelshein 2018.
    """
    num_heads, tokens, latent_dim = (
        latent_queries.shape if latent_queries.ndim == 3 else (-1, -1, -1)
    )
    _check(latent_queries, "latent_attention: latent_queries", torch.float32, 3, latent_dim)
    _check(rope_queries, "latent_attention: rope_queries", torch.float32, 3, None)
    rope_dim = rope_queries.shape[2]
    _check(latents, "latent_attention: latents", torch.float32, 2, latent_dim + rope_dim)
    if rope_queries.shape[:2] != (tokens, num_heads) or latents.shape[0] < tokens:
        raise ShapeError(
            f"latent_attention: {tuple(latent_queries.shape)} latent queries, "
            f"{tuple(rope_queries.shape)} rope queries, {latents.shape[0]} positions do not fit"
        )
    out = torch.empty_like(latent_queries)  # (N, T, R)
    _C.latent_attention(
        latent_queries.data_ptr(),
        rope_queries.data_ptr(),
        latents.data_ptr(),
        tokens,
        num_heads,
        latent_dim,
        rope_dim,
        latents.shape[0] - tokens,
        scale,
        out.data_ptr(),
    )
    return out


def dequantize(w: QuantMatrix) -> Tensor:
    """Every weight as float32: (N, K), or (B, N, K) for a stack; the bits of `gguf.quants`."""
    shape = (w.rows, w.cols) if w.batch == 1 else (w.batch, w.rows, w.cols)
    out = _empty(*shape)
    _C.dequantize(w.handle, out.data_ptr())
    return out


def gather_rows(w: QuantMatrix, ids: Tensor) -> Tensor:
    """Rows `ids` of one matrix, as float32: token embeddings.

    Shapes:  w (N, K) · ids (T,) int64 -> (T, K) f32.
    Errors:  ShapeError, also for an id outside 0..N-1.
    """
    _check(ids, "gather_rows: ids", torch.int64, 1, None)
    out = _empty(ids.shape[0], w.cols)  # (T, K)
    _C.gather_rows(w.handle, ids.data_ptr(), ids.shape[0], out.data_ptr())
    return out


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever torch's defaults are


def _check(t: Tensor, what: str, dtype: torch.dtype, ndim: int, last: int | None) -> None:
    """Raise unless `t` is a contiguous CPU tensor of `ndim` dimensions, the last of size `last`."""
    if (
        t.dtype is dtype
        and t.ndim == ndim
        and (last is None or t.shape[-1] == last)
        and t.is_contiguous()
        and t.device.type == "cpu"
    ):
        return
    raise ShapeError(
        f"{what} is {t.dtype} {tuple(t.shape)} on {t.device.type}"
        f"{'' if t.is_contiguous() else ', not contiguous'}, expected a contiguous CPU tensor of "
        f"{dtype} with {ndim} dimensions{'' if last is None else f', the last {last}'}"
    )

"""CPU kernels as functions of torch tensors: shapes are checked here, csrc computes.

All tensors are on the CPU, and contiguous unless a function says "rows anywhere". A token's result
has the same bits whatever else is in the batch and however many threads run; on AMX the former
holds for calls of fewer than 16 tokens (`hybridmoe.hardware.isa`). Products with a quantised matrix
round the activations to int8 in blocks of 32 with a float32 scale, then add exact integer dot
products; tiles round both sides to bfloat16. F32, F16 and BF16 matrices take float32 activations
(tiles of BF16: two bfloat16 of each). csrc/README.md gives the reasons, tests/support/closeness.py
and test_tiles.py the error bounds, reference.py the same functions in plain numpy.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import RoutingSpec
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa
from hybridmoe.hardware.topology import num_threads, set_num_threads
from hybridmoe.kernels.matrix import QuantMatrix

__all__ = [
    "QuantMatrix",
    "batched_linear",
    "check_routing",
    "check_rows",
    "check_tensor",
    "claim_rows",
    "dense_ffn",
    "dequantize",
    "expert_ffn",
    "gather_rows",
    "isa",
    "linear",
    "num_threads",
    "rms_norm",
    "rotate_",
    "route",
    "set_num_threads",
    "touch_rows",
]


def linear(x: Tensor, w: QuantMatrix, out: Tensor | None = None) -> Tensor:
    """Compute x W^T.

    Shapes:  x (T, K) f32 · w one matrix (N, K) -> (T, N) f32, in `out` where that is given.
    Cost:    reads w once for every four tokens, from a cache after the first.
    Errors:  ShapeError.
    """
    if w.batch != 1:
        raise ShapeError(f"linear: w is a stack of {w.batch} matrices, expected one")
    check_rows(x, "linear: x", 2, w.cols)
    tokens = x.shape[0]
    if out is None:
        out = _empty(tokens, w.rows)  # (T, N)
    else:
        check_rows(out, "linear: out", 2, w.rows, tokens)
    _C.linear(x.data_ptr(), 0, x.stride(0), tokens, w.handle, out.data_ptr(), 0, out.stride(0))
    return out


def batched_linear(x: Tensor, w: QuantMatrix, out: Tensor | None = None) -> Tensor:
    """Compute x[b] W[b]^T for every matrix of a stack: the per-head products of MLA.

    Shapes:  x (B, T, K) f32 · w B matrices (N, K) -> (B, T, N) f32, in `out` where that is given.
             Rows of x and of out may lie anywhere.
    Errors:  ShapeError.
    """
    check_rows(x, "batched_linear: x", 3, w.cols)
    batch, tokens, _ = x.shape
    if batch != w.batch:
        raise ShapeError(f"batched_linear: x has {batch} batches, w {w.batch}")
    if out is None:
        out = _empty(batch, tokens, w.rows)  # (B, T, N)
    else:
        check_rows(out, "batched_linear: out", 3, w.rows, batch, tokens)
    x_batch, x_token, _ = x.stride()
    out_batch, out_token, _ = out.stride()
    _C.linear(
        x.data_ptr(), x_batch, x_token, tokens, w.handle, out.data_ptr(), out_batch, out_token
    )
    return out


def expert_ffn(
    x: Tensor, ids: Tensor, weights: Tensor, gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix
) -> Tensor:
    """Compute the weighted SwiGLU output of each token's experts.

    Shapes:  x (T, H) f32 · ids (T, k) int32, -1 = none · weights (T, k) f32 ·
             gate, up (E, I, H) · down (E, H, I) -> (T, H) f32.
    Cost:    reads each distinct expert once per call (per four of its tokens, from a cache).
    Numeric: the product silu(gate) * up is rounded to int8 again where `down` is quantised.
    Errors:  ShapeError, also for an id outside -1..E-1.
    Source:  SwiGLU, Shazeer 2020.
    """
    tokens, top_k = check_routing(x, ids, weights, gate.cols)
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
        0,
        out.data_ptr(),
    )
    return out


def check_routing(x: Tensor, ids: Tensor, weights: Tensor, hidden: int) -> tuple[int, int]:
    """Check the inputs of `expert_ffn`; returns tokens and experts of each.

    Shapes:  x (T, H) f32 · ids (T, k) int32 · weights (T, k) f32.
    Errors:  ShapeError.
    """
    check_tensor(x, "expert_ffn: x", torch.float32, 2, hidden)
    tokens, top_k = ids.shape if ids.ndim == 2 else (-1, -1)
    check_tensor(ids, "expert_ffn: ids", torch.int32, 2, top_k)
    check_tensor(weights, "expert_ffn: weights", torch.float32, 2, top_k)
    if not tokens == x.shape[0] == weights.shape[0]:
        raise ShapeError(
            f"expert_ffn: x has {x.shape[0]} tokens, ids {tokens}, weights {weights.shape[0]}"
        )
    return tokens, top_k


def dense_ffn(
    x: Tensor, gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix, base: Tensor | None = None
) -> Tensor:
    """Compute base + down(silu(gate(x)) * up(x)): `expert_ffn` with one expert for every token.

    Shapes:  x (T, H) f32 · gate, up (I, H) · down (H, I) · base (T, H) f32 -> (T, H) f32.
    Errors:  ShapeError.
    """
    check_tensor(x, "dense_ffn: x", torch.float32, 2, gate.cols)
    if base is not None:
        check_tensor(base, "dense_ffn: base", torch.float32, 2, gate.cols)
        if base.shape[0] != x.shape[0]:
            raise ShapeError(f"dense_ffn: x has {x.shape[0]} tokens, base {base.shape[0]}")
    out = torch.empty_like(x)  # (T, H)
    _C.expert_ffn(
        x.data_ptr(),
        0,
        0,
        x.shape[0],
        1,
        gate.handle,
        up.handle,
        down.handle,
        0 if base is None else base.data_ptr(),
        out.data_ptr(),
    )
    return out


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight by rows; with `residual`, x += residual first.

    Shapes:  x (T, n) f32, its rows anywhere · weight (n,) f32 · residual (T, n) f32
             -> (T, n) f32, in `out` where that is given (it may be x).
    Errors:  ShapeError.
    Source:  Zhang & Sennrich 2019.
    """
    check_tensor(weight, "rms_norm: weight", torch.float32, 1, None)
    n = weight.shape[0]
    check_rows(x, "rms_norm: x", 2, n)
    tokens = x.shape[0]
    if residual is not None:
        check_tensor(residual, "rms_norm: residual", torch.float32, 2, n)
        if residual.shape[0] != tokens:
            raise ShapeError(f"rms_norm: x has {tokens} tokens, residual {residual.shape[0]}")
    if out is None:
        out = _empty(tokens, n)
    else:
        check_rows(out, "rms_norm: out", 2, n, tokens)
    _C.rms_norm(
        x.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        tokens,
        n,
        eps,
        out.data_ptr(),
        out.stride(0),
    )
    return out


def rotate_(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of each vector of a token in place: RoPE.

    Shapes:  x (T, N, P) f32, its rows anywhere · cos_sin (T, P) f32: cos, sin, cos, ...
    Errors:  ShapeError.
    Source:  RoPE, Su et al. 2021, in the interleaved convention.
    """
    check_tensor(cos_sin, "rotate_: cos_sin", torch.float32, 2, None)
    tokens, dim = cos_sin.shape
    check_rows(x, "rotate_: x", 3, dim, tokens)
    if dim % 2 != 0:
        raise ShapeError(f"rotate_: {dim} numbers are not pairs")
    _C.rotate(
        x.data_ptr(), tokens, x.shape[1], x.stride(0), x.stride(1), dim // 2, cos_sin.data_ptr()
    )
    return x


def route(logits: Tensor, bias: Tensor | None, spec: RoutingSpec) -> tuple[Tensor, Tensor]:
    """Choose each token's experts and their weights; hybridmoe.model.router explains the rules.

    Shapes:  logits (T, E) f32 · bias (E,) f32 -> ids (T, k) int32, best first, weights (T, k) f32.
    Numeric: of equal scores the lower id wins; a NaN counts as the best, and shows in the weights.
    Errors:  ShapeError.
    """
    check_tensor(logits, "route: logits", torch.float32, 2, None)
    tokens, num_experts = logits.shape
    if bias is not None:
        check_tensor(bias, "route: bias", torch.float32, 1, num_experts)
    top_k = spec.top_k
    if not 1 <= top_k <= num_experts:  # the kernel checks groups
        raise ShapeError(f"route: {top_k} of {num_experts} experts, expected 1 to all of them")
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device="cpu")
    weights = _empty(tokens, top_k)
    _C.route(
        logits.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        tokens,
        num_experts,
        top_k,
        spec.num_groups,
        spec.num_groups_used,
        spec.is_sigmoid,
        spec.is_normalized,
        spec.scale,
        ids.data_ptr(),
        weights.data_ptr(),
    )
    return ids, weights


def dequantize(w: QuantMatrix) -> Tensor:
    """Dequantize to float32: (N, K), or (B, N, K) for a stack; the bits of `gguf.quants`."""
    shape = (w.rows, w.cols) if w.batch == 1 else (w.batch, w.rows, w.cols)
    out = _empty(*shape)
    _C.dequantize(w.handle, out.data_ptr())
    return out


def gather_rows(w: QuantMatrix, ids: Tensor) -> Tensor:
    """Gather rows `ids` of one matrix as float32: token embeddings.

    Shapes:  w (N, K) · ids (T,) int64 -> (T, K) f32.
    Errors:  ShapeError, also for an id outside 0..N-1.
    """
    check_tensor(ids, "gather_rows: ids", torch.int64, 1, None)
    out = _empty(ids.shape[0], w.cols)  # (T, K)
    _C.gather_rows(w.handle, ids.data_ptr(), ids.shape[0], out.data_ptr())
    return out


def touch_rows(data: NDArray[np.uint8], num_matrices: int, rows: int) -> None:
    """Read the mapped bytes of a stack of matrices into memory.

    On several NUMA nodes each row goes to the memory of the node whose threads work on it, unless
    it is cached already.
    Shapes:  data (num_matrices * rows * bytes of a row,) uint8, contiguous.
    Errors:  ShapeError.
    """
    _C.touch_rows(*_stack(data, num_matrices, rows, "touch_rows"))


def claim_rows(data: NDArray[np.uint8], num_matrices: int, rows: int) -> None:
    """Provide the pages of a stack of matrices in new, anonymous memory, filled with zeros.

    On several NUMA nodes, as `touch_rows`; with one, whoever writes first provides them.
    Shapes, errors:  those of `touch_rows`.
    """
    _C.claim_rows(*_stack(data, num_matrices, rows, "claim_rows"))


def _stack(
    data: NDArray[np.uint8], num_matrices: int, rows: int, what: str
) -> tuple[int, int, int, int]:
    """Check the bytes of a stack. Returns address, matrices, rows and bytes of a row."""
    count = num_matrices * rows
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        raise ShapeError(f"{what}: data is {data.dtype} {data.shape}, expected uint8 (n,)")
    if count < 1 or data.size == 0 or data.size % count:
        raise ShapeError(f"{what}: {data.size} bytes are not {num_matrices} x {rows} rows")
    return data.ctypes.data, num_matrices, rows, data.size // count


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")  # not torch's defaults


def check_rows(t: Tensor, what: str, ndim: int, last: int | None, *first: int) -> None:
    """Check a float32 CPU tensor of which only the last dimension must be contiguous."""
    if (
        t.dtype is torch.float32
        and t.ndim == ndim
        and (last is None or t.shape[-1] == last)
        and t.shape[: len(first)] == first
        and (t.stride(-1) == 1 or t.shape[-1] <= 1)
        and t.device.type == "cpu"
    ):
        return
    wanted = [*map(str, first), *["any"] * (ndim - 1 - len(first)), str(last or "any")]
    raise ShapeError(
        f"{what} is {t.dtype} {tuple(t.shape)} with strides {t.stride()} on {t.device.type}, "
        f"expected a CPU tensor of torch.float32 ({', '.join(wanted)}) with contiguous rows"
    )


def check_tensor(t: Tensor, what: str, dtype: torch.dtype, ndim: int, last: int | None) -> None:
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

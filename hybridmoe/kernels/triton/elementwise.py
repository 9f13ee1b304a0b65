"""Elementwise and row-wise operations: RMS norm, RoPE, SwiGLU, KV cache writes.

Rows lie anywhere; the numbers of a row are contiguous.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.kernels.triton.runtime import check_device_rows, check_device_tensor

__all__ = ["rms_norm", "rotate_", "silu_mul", "store_kv", "swiglu"]

_F32 = (torch.float32,)
_SHORT = (torch.float16, torch.bfloat16)
_BLOCK = 1024  # numbers of a program
_HEADS = 16  # of a program


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
    check_device_tensor(weight, "rms_norm: weight", _F32, (None,))
    n = weight.shape[0]
    check_device_rows(x, "rms_norm: x", (None, n))
    tokens = x.shape[0]
    if residual is not None:
        check_device_tensor(residual, "rms_norm: residual", _F32, (tokens, n))
    if out is None:
        out = x.new_empty(tokens, n)
    else:
        check_device_rows(out, "rms_norm: out", (tokens, n))
    if tokens and n:
        block = triton.next_power_of_2(n)
        _rms_norm_kernel[(tokens,)](
            x,
            weight if residual is None else residual,
            weight,
            out,
            n,
            x.stride(0),
            out.stride(0),
            eps,
            int(residual is not None),
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )
    return out


def rotate_(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of each vector of a token in place: RoPE.

    Shapes:  x (T, N, P) f32, its rows anywhere · cos_sin (T, P) f32: cos, sin, cos, ...
    Errors:  ShapeError.
    Source:  RoPE, Su et al. 2021, in the interleaved convention.
    """
    check_device_tensor(cos_sin, "rotate_: cos_sin", _F32, (None, None))
    tokens, dim = cos_sin.shape
    check_device_rows(x, "rotate_: x", (tokens, None, dim))
    if dim % 2:
        raise ShapeError(f"rotate_: {dim} numbers are not pairs")
    num_heads = x.shape[1]
    if tokens and num_heads and dim:
        _rotate_kernel[(tokens, triton.cdiv(num_heads, _HEADS))](
            x,
            cos_sin,
            num_heads,
            dim // 2,
            x.stride(0),
            x.stride(1),
            HEADS=_HEADS,
            BLOCK=triton.next_power_of_2(dim // 2),
            num_warps=2,
        )
    return x


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) * up.

    Shapes:  gate, up (T, n) f32 -> (T, n) f32.
    Errors:  ShapeError.
    """
    check_device_tensor(gate, "silu_mul: gate", _F32, (None, None))
    check_device_tensor(up, "silu_mul: up", _F32, tuple(gate.shape))
    out = torch.empty_like(gate)
    count = gate.numel()
    if count:
        _silu_mul_kernel[(triton.cdiv(count, _BLOCK),)](gate, up, out, count, BLOCK=_BLOCK)
    return out


def store_kv(rows: Tensor, pages: Tensor, slots: Tensor) -> None:
    """Write a step's rows to the KV cache.

    Shapes:  rows (T, D) f32 · pages (pages, 64, D) f16 or bf16 · slots (T,) int64, page * 64 + row.
    Numeric: rounded to nearest even; a finite number beyond f16's range becomes its greatest.
    Errors:  ShapeError. Slots lie in VRAM and are not checked.
    """
    check_device_tensor(rows, "store_kv: rows", _F32, (None, None))
    tokens, dim = rows.shape
    check_device_tensor(pages, "store_kv: pages", _SHORT, (None, PAGE_TOKENS, dim))
    check_device_tensor(slots, "store_kv: slots", (torch.int64,), (tokens,))
    if tokens and dim:
        block = triton.next_power_of_2(dim)
        bits = pages.view(torch.int16)
        is_half = pages.dtype is torch.float16
        _store_kernel[(tokens,)](rows, bits, slots, dim, IS_HALF=is_half, BLOCK=block, num_warps=4)


# The numbers that a step changes are not specialised, so that no step needs another binary.
@triton.jit(do_not_specialize=["has_residual"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    n,
    x_stride,
    out_stride,
    eps,
    has_residual,
    BLOCK: tl.constexpr,
):
    """Normalise one row, all of it in registers."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + t * x_stride + i, mask=mask, other=0.0)
    if has_residual != 0:
        x += tl.load(residual_ptr + t * n + i, mask=mask, other=0.0)
        tl.store(x_ptr + t * x_stride + i, x, mask=mask)
    scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / n + eps)  # rsqrt would load libdevice to compile
    weight = tl.load(weight_ptr + i, mask=mask, other=0.0)
    tl.store(out_ptr + t * out_stride + i, x * scale * weight, mask=mask)


@triton.jit(do_not_specialize=["num_heads", "token_stride", "head_stride"])
def _rotate_kernel(
    x_ptr,
    cos_sin_ptr,
    num_heads,
    num_pairs,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotate HEADS vectors of a token."""
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, BLOCK)
    pair_ok = pair < num_pairs
    mask = (head < num_heads)[:, None] & pair_ok[None, :]
    at = x_ptr + t * token_stride + head[:, None] * head_stride + 2 * pair[None, :]
    pair_ptr = cos_sin_ptr + t * 2 * num_pairs + 2 * pair
    cos = tl.load(pair_ptr, mask=pair_ok, other=0.0)[None, :]
    sin = tl.load(pair_ptr + 1, mask=pair_ok, other=0.0)[None, :]
    a, b = tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)
    tl.store(at, a * cos - b * sin, mask=mask)
    tl.store(at + 1, a * sin + b * cos, mask=mask)


@triton.jit
def swiglu(gate, up):
    """silu(gate) * up of tiles in registers."""
    e = tl.exp(-tl.abs(gate))  # cannot overflow
    return gate * tl.where(gate < 0, e, 1.0) / (1.0 + e) * up


@triton.jit
def _silu_mul_kernel(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    g = tl.load(gate_ptr + i, mask=mask, other=0.0)
    u = tl.load(up_ptr + i, mask=mask, other=0.0)
    tl.store(out_ptr + i, swiglu(g, u), mask=mask)


@triton.jit
def _store_kernel(rows_ptr, bits_ptr, slots_ptr, dim, IS_HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Store one row; bf16 is rounded as integers, so the interpreter agrees with a GPU."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < dim
    x = tl.load(rows_ptr + t * dim + i, mask=mask, other=0.0)
    if IS_HALF:  # NaN and infinities stay what they are
        infinity = float("inf")
        x = tl.where((x > 65504.0) & (x < infinity), 65504.0, x)
        x = tl.where((x < -65504.0) & (x > -infinity), -65504.0, x)
        rounded = x.to(tl.float16).to(tl.int16, bitcast=True)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded).to(tl.int16)  # NaN stays NaN
    slot = tl.load(slots_ptr + t)
    tl.store(bits_ptr + slot * dim + i, rounded, mask=mask)

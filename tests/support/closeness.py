"""Error bounds of CPU kernels against exact arithmetic on the same weights: derived, not guessed.

u = 2^-24 is float32's unit roundoff.

Rounded activations are modelled exactly: x' = n d with d = fl(absmax / 127) in each block of 32 and
n = rint(fl(x fl(127 / absmax))), all in float32, so numpy finds the very integers that the kernels
use. What is left of y = w . x' is float32 addition. A product, or an exact integer sum of products
times a scale, enters one of 16 (or 8) lanes; the longest chain has K/16 of them, and a tree of 5
ends it. Scales, and the reference's weights, are products of a few rounded factors. In all, fewer
than n = K/16 + 16 roundings touch any one term, so |error| <= 1.01 n u s, with s the sum of the
magnitudes that are added: |w| . |x'|, or for a format with an offset (w = d q - m, the two parts
added apart) (|w + m| + |m|) . |x'|. `offsets` finds -m: what a block decodes to when its codes are
all zero.

Where x itself carries an error (the hidden activations of a feed-forward), d moves with it, and an
x that is as close to a tie as that error may round to the other neighbour: `rounded` returns that
slack.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from random_weights import rounds_activations

from hybridmoe.gguf.quant_types import block_layout
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.reference_dequantize import dequantize_rows

Array = NDArray[np.float64]

_U = 2.0**-24
_BLOCK = 32

_CODE_BYTES = {  # of the formats whose codes carry an offset
    "Q4_0": (2, 18), "Q4_1": (4, 20), "Q5_0": (2, 22), "Q5_1": (4, 24),
    "Q2_K": (16, 80), "Q3_K": (0, 96), "Q4_K": (16, 144), "Q5_K": (16, 176), "Q6_K": (0, 192),
    "TQ2_0": (0, 64), "Q1_0": (2, 18), "Q2_0": (2, 18), "Q6_0": (2, 26),
}  # fmt: skip


def weights(w: QuantMatrix) -> Array:
    """(B, N, K), as the reference decodes them."""
    return _decode(w, w.data)


def offsets(w: QuantMatrix) -> Array:
    """(B, N, K): the part of each weight that does not depend on its code."""
    span = _CODE_BYTES.get(w.type.name)
    if span is None:
        return np.zeros((w.batch, w.rows, w.cols))
    blocks = w.data.reshape(-1, block_layout(w.type).num_bytes).copy()
    blocks[:, slice(*span)] = 0
    return _decode(w, blocks)


def _decode(w: QuantMatrix, data: NDArray[np.uint8]) -> Array:
    rows = data.reshape(w.batch * w.rows, w.row_bytes)
    decoded = dequantize_rows(rows, w.type)
    return decoded.astype(np.float64).reshape(w.batch, w.rows, w.cols)


def rounded(x: Array, error: Array | float = 0.0) -> tuple[Array, Array]:
    """Rounded activations x' (T, K), and the bound on the kernel's where x is off by `error`."""
    blocks = x.astype(np.float32).reshape(len(x), x.shape[-1] // _BLOCK, _BLOCK)
    errors = np.broadcast_to(np.asarray(error, np.float64), x.shape).reshape(blocks.shape)
    absmax = np.abs(blocks).max(-1, keepdims=True)
    empty = absmax < np.float32(2.0**-120)
    absmax = np.where(empty, np.float32(1), absmax)
    d = np.where(empty, np.float32(0), absmax / np.float32(127)).astype(np.float64)
    scaled = np.where(empty, np.float32(0), blocks * (np.float32(127) / absmax)).astype(np.float64)
    codes = np.rint(scaled)
    exact = errors.max(-1, keepdims=True) == 0
    d_error = np.where(exact, 0.0, errors.max(-1, keepdims=True) / 127 + 2 * _U * d)
    step = np.where(d == 0, np.inf, d)
    near = (errors + 127 * d_error) / step + 512 * _U  # how far x / d may move
    tie = ~exact & (0.5 - np.abs(scaled - codes) <= near)
    slack = np.abs(codes) * d_error + tie * (d + d_error)
    return (codes * d).reshape(x.shape), slack.reshape(x.shape)


def product_bound(x: Array, slack: Array | float, w: Array, offset: Array) -> Array:
    """For y = w . x: x, slack (T, K) · w, offset (N, K) -> (T, N)."""
    cols = x.shape[-1]
    magnitude = np.abs(x) @ (np.abs(w - offset) + np.abs(offset)).T
    from_x = np.broadcast_to(np.asarray(slack, np.float64), x.shape) @ np.abs(w).T
    return 1.01 * (cols / 16 + 16) * _U * (magnitude + from_x) + from_x


def one_expert(matrices: Sequence[QuantMatrix], e: int, x: Array) -> tuple[Array, Array]:
    """Exact result for the activations as the kernels round them, and its bound. x (T, H)."""

    def product(w: QuantMatrix, x: Array, error: Array | float) -> tuple[Array, Array]:
        matrix, slack = w.slice(e, e + 1), error
        if rounds_activations(w.type):
            x, slack = rounded(x, error)
        decoded, offset = weights(matrix)[0], offsets(matrix)[0]
        return x @ decoded.T, product_bound(x, slack, decoded, offset)

    gate_w, up_w, down_w = matrices
    gate, gate_bound = product(gate_w, x, 0.0)
    up, up_bound = product(up_w, x, 0.0)
    silu = gate / (1 + np.exp(-gate))
    hidden = silu * up
    # |silu'| < 1.1; a few roundings and an exp of 2 ulp make 8 u; float32 ends at 2^-149
    bound = 1.1 * gate_bound * (np.abs(up) + up_bound) + np.abs(silu) * up_bound
    bound += 8 * 2.0**-24 * np.abs(hidden) + 2.0**-140
    return product(down_w, hidden, bound)


def assert_close(got: object, want: Array, bound: Array, what: str) -> None:
    """Elementwise |got - want| <= bound, or a failure that shows the worst element."""
    if isinstance(got, torch.Tensor):
        got = got.cpu()
    error = np.abs(np.asarray(got, np.float64) - want)
    outside = ~(error <= bound)
    if not outside.any():
        return
    ratio = np.where(outside, error / np.maximum(bound, 1e-300), 0)
    at = tuple(int(i) for i in np.unravel_index(np.nanargmax(ratio), ratio.shape))
    raise AssertionError(
        f"{what}: {outside.sum()} of {outside.size} elements out of bounds; worst at {at}: "
        f"got {np.asarray(got)[at]}, want {want[at]}, bound {bound[at]:.3g}"
    )

"""Reference of ops.py in float64: slow and obvious, for tests.

Weights are those of `gguf.quants` and of `reference_dequantize`; activations are not rounded.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.reference_dequantize import dequantize_rows

__all__ = [
    "batched_linear",
    "dequantize",
    "expert_ffn",
    "gather_rows",
    "latent_attention",
    "linear",
]


def dequantize(w: QuantMatrix) -> Tensor:
    """Dequantize to f32 (N, K), or (B, N, K) for a stack."""
    blocks = (w.batch, w.rows, w.row_bytes)
    rows = as_strided(w.data, blocks, (w.stride, w.row_bytes, 1), writeable=False).reshape(
        -1, w.row_bytes
    )
    weights = dequantize_rows(rows, w.type).copy()
    if w.scales is not None:
        weights *= np.repeat(w.scales, w.rows)[:, None]
    shape = (w.rows, w.cols) if w.batch == 1 else (w.batch, w.rows, w.cols)
    return torch.from_numpy(weights.reshape(shape))


def linear(x: Tensor, w: QuantMatrix) -> Tensor:
    """Compute x (T, K) · w (N, K) -> (T, N) f64."""
    return x.double() @ dequantize(w).double().T


def batched_linear(x: Tensor, w: QuantMatrix) -> Tensor:
    """Compute x (B, T, K) · w (B, N, K) -> (B, T, N) f64."""
    weights = dequantize(w).double().reshape(w.batch, w.rows, w.cols)
    return x.double() @ weights.transpose(1, 2)


def expert_ffn(
    x: Tensor, ids: Tensor, weights: Tensor, gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix
) -> Tensor:
    """Compute x (T, H) · ids (T, k), -1 = none · weights (T, k) -> (T, H) f64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, j in zip(*torch.nonzero(ids >= 0, as_tuple=True), strict=True):
        e = int(ids[t, j])
        token = x[t : t + 1]
        g = linear(token, gate.slice(e, e + 1))
        hidden = g * torch.sigmoid(g) * linear(token, up.slice(e, e + 1))
        out[t] += float(weights[t, j]) * linear(hidden, down.slice(e, e + 1))[0]
    return out


def latent_attention(q_latent: Tensor, q_rope: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Attend from q_latent (N, T, R), q_rope (T, N, P) to rows (S, R + P) -> (N, T, R) f64."""
    queries = torch.cat((q_latent, q_rope.transpose(0, 1)), -1).double()
    num_tokens, num_positions = queries.shape[1], len(rows)
    scores = queries @ rows.double().T * scale  # (N, T, S)
    seen = torch.ones(num_tokens, num_positions).tril(num_positions - num_tokens).bool()
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return shares @ rows[:, : q_latent.shape[2]].double()


def gather_rows(w: QuantMatrix, ids: Tensor) -> Tensor:
    """Gather rows ids (T,) of w (N, K) -> (T, K) f32."""
    return dequantize(w).reshape(w.rows, w.cols)[ids]

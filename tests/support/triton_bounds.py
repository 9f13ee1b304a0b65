"""Error bounds of Triton's kernels, in its interpreter and on a GPU, against exact arithmetic.

Roundings to bfloat16 are modelled exactly: the interpreter drops the lower 16 bits, a GPU rounds to
nearest even. Weights decode to the bits of `gguf.quants`. What is left is float32
addition: with u = 2^-24, a term of a product of K columns passes three roundings of its weight, one
of the product, K / 256 of its lane, a sum over 256 lanes of at most 32 (numpy adds pairwise; a GPU
in a tree of 8) and one for each split of the columns, of which there are K / 512 at most.

A GPU's tensor cores add 16 exact products and the sum so far at the scale of the largest of them,
and drop what is below its last bit (Fasi et al. 2021: "Numerical behavior of NVIDIA tensor cores"):
17 numbers and the result lose 2 u each, of the sum of all magnitudes at most.

An exponential e^x on a GPU is 2^(x log2 e), whose rounded exponent makes it off by 2 u |x| + 2 u.
"""

from collections.abc import Sequence
from dataclasses import replace

import closeness
import numpy as np
import torch
from closeness import Array
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

U = 2.0**-24


def bfloat16(a: NDArray[np.float32]) -> Array:
    """Round float32 numbers as Triton does here: towards zero, on a GPU to nearest even."""
    if not IS_INTERPRETED:
        return torch.from_numpy(np.ascontiguousarray(a, np.float32)).bfloat16().double().numpy()
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def offsets(w: QuantMatrix) -> Array:
    """(B, N, K): what kernels add to scale * code; Q8_0's signed codes have 128 added there."""
    if w.type != GGMLQuantizationType.Q8_0:
        return closeness.offsets(w)
    blocks = w.data.reshape(-1, 34).copy()
    blocks[:, 2:] = 0x80
    return closeness.weights(replace(w, data=blocks.reshape(-1)))


def sum_bound(cols: int, magnitude: Array) -> Array:
    """Of one product whose terms' magnitudes add up to `magnitude`."""
    return 1.01 * (cols / 256 + 32 + cols / 512 + 5) * U * magnitude


def dot_bound(cols: int, magnitude: Array) -> Array:
    """Of one product by `tl.dot` or torch, of operands that are exact in bfloat16 or float16."""
    steps = 0 if IS_INTERPRETED else cols / 16 + 1
    return sum_bound(cols, magnitude) + 36 * steps * U * magnitude


def one_expert(
    matrices: Sequence[QuantMatrix], expert: int, x: Array, top_k: int
) -> tuple[Array, Array]:
    """Exact result (H) of an expert's gate, up and down for x (H), and its bound in a sum of top_k.

    |silu'| < 1.1; an exponential and a few roundings make (8 + 2 |gate|) u of the hidden ones.
    """

    def product(w: QuantMatrix, x: Array) -> tuple[Array, Array]:
        one = w.slice(expert, expert + 1)
        decoded, offset = closeness.weights(one)[0], offsets(one)[0]
        return decoded @ x, (np.abs(decoded - offset) + np.abs(offset)) @ np.abs(x)

    gate_w, up_w, down_w = matrices
    gate, gate_size = product(gate_w, x)
    up, up_size = product(up_w, x)
    gate_bound, up_bound = sum_bound(gate_w.cols, gate_size), sum_bound(up_w.cols, up_size)
    silu = gate / (1 + np.exp(-gate))
    hidden_bound = 1.1 * gate_bound * (np.abs(up) + up_bound) + np.abs(silu) * up_bound
    hidden_bound += (8 + 2 * np.abs(gate)) * U * np.abs(silu * up)
    y, size = product(down_w, silu * up)
    spread = np.abs(closeness.weights(down_w.slice(expert, expert + 1))[0]) @ hidden_bound
    return y, sum_bound(top_k * (down_w.cols + 256), size + spread) + spread


def expert_of_rows(
    matrices: Sequence[QuantMatrix], expert: int, x: NDArray[np.float32]
) -> tuple[Array, Array]:
    """An expert's gate, up and down for x (n, H) by `add_experts`, and how far that may be off.

    Roundings of weights and x to bfloat16 are modelled; those of hidden activations take 2^-7 of
    them at most.
    """

    def product(w: QuantMatrix, x: Array, error: Array | float) -> tuple[Array, Array]:
        one = w.slice(expert, expert + 1)
        decoded, offset = closeness.weights(one)[0], offsets(one)[0]
        size = (np.abs(x) + error) @ (np.abs(decoded - offset) + np.abs(offset)).T
        decoded = bfloat16(decoded.astype(np.float32))
        bound = dot_bound(w.cols, size) + np.broadcast_to(error, x.shape) @ np.abs(decoded).T
        return x @ decoded.T, bound

    states = torch.from_numpy(x).bfloat16().double().numpy()  # by torch, to nearest even
    gate_w, up_w, down_w = matrices
    gate, gate_bound = product(gate_w, states, 0.0)
    up, up_bound = product(up_w, states, 0.0)
    silu = gate / (1 + np.exp(-gate))
    bound = 1.1 * gate_bound * (np.abs(up) + up_bound) + np.abs(silu) * up_bound
    bound += (8 + 2 * np.abs(gate)) * U * np.abs(silu * up)
    bound += 2.0**-7 * (np.abs(silu * up) + bound)
    return product(down_w, silu * up, bound)

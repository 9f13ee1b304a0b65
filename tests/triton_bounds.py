"""How far Triton's kernels, as its interpreter runs them, may be from exact arithmetic.

Roundings to bfloat16 are modelled exactly: the interpreter drops the lower 16 bits (a card rounds
to nearest even), and decodes weights to the bits of `gguf.quants`. What is left is float32
addition: with u = 2^-24, a term of a product of K columns passes three roundings of its weight, one
of the product, K / 256 of its lane, a sum over 256 lanes of at most 32 (numpy adds pairwise; a card
in a tree of 8) and one for each split of the columns, of which there are K / 512 at most.
"""

import numpy as np
from closeness import Array
from numpy.typing import NDArray

U = 2.0**-24


def chopped(a: NDArray[np.float32]) -> Array:
    """Float32 numbers as bfloat16, rounded towards zero, as the interpreter does it."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def sum_bound(cols: int, magnitude: Array) -> Array:
    """Of one product whose terms' magnitudes add up to `magnitude`."""
    return 1.01 * (cols / 256 + 32 + cols / 512 + 5) * U * magnitude

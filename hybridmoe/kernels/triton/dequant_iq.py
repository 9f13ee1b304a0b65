"""Blocks of 256 weights from codebooks (IQ1, IQ2, IQ3) to float32. Layouts: csrc/formats/blocks.h.

A codebook entry is a word of 8 weights, or of 4 in IQ3: tiles are (ROWS, 32, 8) and (ROWS, 64, 4).
`books`: of `codebooks`.
"""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.block_loads import blocks_of_256, load_byte, load_half, load_word
from hybridmoe.kernels.triton.codebooks import IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS

__all__ = ["iq1_m", "iq1_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs"]


@triton.jit
def iq1_s(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 50, 32)
    k = tl.arange(0, 32)[None, :]
    high = load_word(base + 34 + 2 * (k >> 2), mask)
    index = load_byte(base + 2 + k, mask) | (((high >> (3 * (k & 3))) & 7) << 8)
    scale = load_half(base, mask) * (2 * ((high >> 12) & 7) + 1).to(tl.float32)
    return _ternary(books, index, scale, high >> 15)


@triton.jit
def iq1_m(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 56, 32)
    k = tl.arange(0, 32)[None, :]
    high = load_byte(base + 32 + (k >> 1), mask) >> (4 * (k & 1))
    index = load_byte(base + k, mask) | ((high & 7) << 8)
    bits = load_word(base + 48, mask) >> 12  # of a binary16 number
    bits |= (load_word(base + 50, mask) >> 12) << 4
    bits |= (load_word(base + 52, mask) >> 12) << 8
    bits |= (load_word(base + 54, mask) >> 12) << 12
    d = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    s = (load_word(base + 48 + 2 * (k >> 3), mask) >> (3 * ((k >> 1) & 3))) & 7
    return _ternary(books, index, d * (2 * s + 1).to(tl.float32), (high >> 3) & 1)


@triton.jit
def iq2_xxs(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 66, 32)
    k = tl.arange(0, 32)[None, :]
    group = base + 2 + 8 * (k >> 2)  # four indices, then a word of signs and a scale
    index = load_byte(group + (k & 3), mask)
    word = load_word(group + 4, mask) | (load_word(group + 6, mask) << 16)
    scale = load_half(base, mask) * (0.5 + ((word >> 28) & 15).to(tl.float32)) * 0.25
    return _two_bits(books + IQ2_XXS, index, scale, _eight_signs(word >> (7 * (k & 3))))


@triton.jit
def iq2_xs(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 74, 32)
    k = tl.arange(0, 32)[None, :]
    word = load_word(base + 2 + 2 * k, mask)
    scale = _nibble_scale(base, base + 66, k, mask)
    return _two_bits(books + IQ2_XS, word & 511, scale, _eight_signs(word >> 9))


@triton.jit
def iq2_s(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 82, 32)
    k = tl.arange(0, 32)[None, :]
    high = load_byte(base + 66 + (k >> 2), mask) >> (2 * (k & 3))
    index = load_byte(base + 2 + k, mask) | ((high & 3) << 8)
    scale = _nibble_scale(base, base + 74, k, mask)
    return _two_bits(books + IQ2_S, index, scale, load_byte(base + 34 + k, mask))


@triton.jit
def iq3_xxs(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 98, 64)
    k = tl.arange(0, 64)[None, :]
    group = base + 66 + 4 * (k >> 3)
    word = load_word(group, mask) | (load_word(group + 2, mask) << 16)
    signs = _eight_signs(word >> (7 * ((k >> 1) & 3))) >> (4 * (k & 1))
    scale = load_half(base, mask) * (0.5 + ((word >> 28) & 15).to(tl.float32)) * 0.5
    code = _codes(books + IQ3_XXS, load_byte(base + 2 + k, mask), 4)
    return _signed(4 + 8 * code + 2 * (code == 7).to(tl.int32), scale, signs)


@triton.jit
def iq3_s(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 110, 64)
    k = tl.arange(0, 64)[None, :]
    high = load_byte(base + 66 + (k >> 3), mask) >> (k & 7)
    index = load_byte(base + 2 + k, mask) | ((high & 1) << 8)
    signs = load_byte(base + 74 + (k >> 1), mask) >> (4 * (k & 1))
    s = (load_byte(base + 106 + (k >> 4), mask) >> (4 * ((k >> 3) & 1))) & 15
    scale = load_half(base, mask) * (1 + 2 * s).to(tl.float32)
    return _signed(2 * _codes(books + IQ3_S, index, 4) + 1, scale, signs)


@triton.jit
def _codes(book, index, BITS: tl.constexpr):
    """Unpack the entries at `index` (ROWS, n): (ROWS, n, weights of an entry)."""
    word = tl.load(book + index).to(tl.int32)
    i = tl.arange(0, 16 // BITS)[None, None, :]
    return (word[:, :, None] >> (BITS * i)) & ((1 << BITS) - 1)


@triton.jit
def _ternary(books, index, scale, is_below):
    """Compute scale (c + 1/8), or scale (c - 1/8) where `is_below`, of c = -1, 0, 1."""
    delta = 0.125 - 0.25 * is_below.to(tl.float32)
    c = (_codes(books + IQ1, index, 2) - 1).to(tl.float32)
    return scale[:, :, None] * (c + delta[:, :, None])


@triton.jit
def _two_bits(book, index, scale, signs):
    """Compute the weights of IQ2: codes 0, 1, 2 are 8, 25, 43."""
    code = _codes(book, index, 2)
    return _signed(8 + 17 * code + (code >> 1), scale, signs)


@triton.jit
def _signed(q, scale, signs):
    """Compute scale q, negative where bit i of `signs` is set for weight i."""
    i = tl.arange(0, q.shape[2])[None, None, :]
    q = tl.where(((signs[:, :, None] >> i) & 1) == 0, q, -q)
    return scale[:, :, None] * q.to(tl.float32)


@triton.jit
def _eight_signs(index):
    """Append to the lowest seven bits their parity."""
    index &= 127
    parity = index ^ (index >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return index | ((parity & 1) << 7)


@triton.jit
def _nibble_scale(base, scales, k, mask):
    """Load the scales of IQ2_XS and IQ2_S: a nibble for 16 weights."""
    s = (load_byte(scales + (k >> 2), mask) >> (4 * ((k >> 1) & 1))) & 15
    return load_half(base, mask) * (0.5 + s.to(tl.float32)) * 0.25

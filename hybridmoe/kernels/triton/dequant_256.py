"""Blocks of 256 weights, a chunk each, to float32. Layouts: csrc/formats/blocks.h."""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.block_loads import blocks_of_256, load_byte, load_half, load_word
from hybridmoe.kernels.triton.dequant_32 import nonlinear

__all__ = [
    "iq4_xs", "nibble_codes", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "tq1_0", "tq2_0",
    "two_bit_codes",
]  # fmt: skip


@triton.jit
def q2_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 84, 16)
    packed = load_byte(base + tl.arange(0, 16)[None, :], mask)
    scale = load_half(base + 80, mask) * (packed & 15).to(tl.float32)
    minimum = load_half(base + 82, mask) * (packed >> 4).to(tl.float32)
    q = two_bit_codes(base + 16, mask)
    return scale[:, :, None] * q.to(tl.float32) - minimum[:, :, None]


@triton.jit
def q3_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 110, 16)
    g = tl.arange(0, 16)
    low = (load_byte(base + 96 + (g & 7)[None, :], mask) >> (4 * (g >> 3))[None, :]) & 15
    high = (load_byte(base + 104 + (g & 3)[None, :], mask) >> (2 * (g >> 2))[None, :]) & 3
    scale = load_half(base + 108, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    i = tl.arange(0, 16)
    third_at = (16 * (g & 1))[:, None] + i[None, :]  # of 32 bytes; a bit for each 32 weights
    third = load_byte(base[:, :, None] + third_at[None, :, :], mask[:, :, None])
    third = (third >> (g >> 1)[None, :, None]) & 1
    q = two_bit_codes(base + 32, mask) + 4 * third - 4
    return scale[:, :, None] * q.to(tl.float32)


@triton.jit
def q4_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 144, 8)
    scale, minimum = _k_scales(base, mask)
    q = _four_bits(base + 16, mask)
    return scale[:, :, None] * q.to(tl.float32) - minimum[:, :, None]


@triton.jit
def q5_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 176, 8)
    scale, minimum = _k_scales(base, mask)
    g = tl.arange(0, 8)
    i = tl.arange(0, 32)
    fifth = load_byte(base[:, :, None] + (16 + i)[None, None, :], mask[:, :, None])
    q = _four_bits(base + 48, mask) | (((fifth >> g[None, :, None]) & 1) << 4)
    return scale[:, :, None] * q.to(tl.float32) - minimum[:, :, None]


@triton.jit
def q6_k(row, chunk, limit, row_ok, IS_PACKED: tl.constexpr):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 210, 16)
    lows, highs, scales, d = base, base + 128, base + 192, base + 208
    if IS_PACKED:
        lows, _ = blocks_of_256(row, chunk, limit, row_ok, 128, 16)
        highs, _ = blocks_of_256(row + 128 * limit, chunk, limit, row_ok, 64, 16)
        scales, _ = blocks_of_256(row + 192 * limit, chunk, limit, row_ok, 16, 16)
        d, _ = blocks_of_256(row + 208 * limit, chunk, limit, row_ok, 2, 16)
    g = tl.arange(0, 16)
    i = tl.arange(0, 16)
    s = tl.load(scales + g[None, :], mask=mask, other=0).to(tl.int8, bitcast=True)
    scale = load_half(d, mask) * s.to(tl.float32)
    low_at = (64 * (g >> 3) + 16 * (g & 3))[:, None] + i[None, :]  # (16, 16)
    high_at = (32 * (g >> 3) + 16 * (g & 1))[:, None] + i[None, :]
    low = load_byte(lows[:, :, None] + low_at[None, :, :], mask[:, :, None])
    high = load_byte(highs[:, :, None] + high_at[None, :, :], mask[:, :, None])
    low_shift, high_shift = 4 * ((g & 7) >> 2), 2 * ((g & 7) >> 1)
    q = ((low >> low_shift[None, :, None]) & 15) | (((high >> high_shift[None, :, None]) & 3) << 4)
    return scale[:, :, None] * (q - 32).to(tl.float32)


@triton.jit
def iq4_xs(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 136, 8)
    g = tl.arange(0, 8)
    low = (load_byte(base + 4 + (g >> 1)[None, :], mask) >> (4 * (g & 1))[None, :]) & 15
    high = (load_word(base + 2, mask) >> (2 * g)[None, :]) & 3
    scale = load_half(base, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    q = nonlinear(nibble_codes(base + 8, mask))
    return scale[:, :, None, None] * q.to(tl.float32)


@triton.jit
def nibble_codes(base, mask):
    """Load codes (ROWS, 8, 2, 16): of each group 16 bytes, first the low nibbles of all."""
    half = tl.arange(0, 2)[None, None, :, None]
    i = tl.arange(0, 16)[None, None, None, :]
    at = 16 * tl.arange(0, 8)[None, :, None, None] + 0 * half + i  # (1, 8, 2, 16)
    codes = load_byte(base[:, :, None, None] + at, mask[:, :, None, None])
    return (codes >> (4 * half)) & 15


@triton.jit
def tq1_0(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 54, 16)
    g = tl.arange(0, 16)[:, None]
    i = tl.arange(0, 16)[None, :]
    # bytes 0-31 hold groups 0-9, 32-47 groups 10-14, 48-51 group 15
    at = tl.where(g < 10, 16 * (g & 1) + i, tl.where(g < 15, 32 + i, 48 + (i & 3)))
    place = tl.where(g < 10, g >> 1, tl.where(g < 15, g - 10, i >> 2))
    power = tl.where(place == 1, 3, 1)
    power = tl.where(place == 2, 9, tl.where(place == 3, 27, tl.where(place == 4, 81, power)))
    byte = load_byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    digit = (((byte * power[None, :, :]) & 255) * 3) >> 8
    return load_half(base + 52, mask)[:, :, None] * (digit - 1).to(tl.float32)


@triton.jit
def tq2_0(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 66, 16)
    q = two_bit_codes(base, mask) - 1
    return load_half(base + 64, mask)[:, :, None] * q.to(tl.float32)


@triton.jit
def two_bit_codes(base, mask):
    """Load codes (ROWS, 16, 16) of Q2_K, Q3_K, TQ2_0: 32 bytes hold four times 32 weights."""
    g = tl.arange(0, 16)
    at = (32 * (g >> 3) + 16 * (g & 1))[:, None] + tl.arange(0, 16)[None, :]  # (16, 16)
    codes = load_byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    return (codes >> (2 * ((g >> 1) & 3))[None, :, None]) & 3


@triton.jit
def _four_bits(base, mask):
    """Load codes (ROWS, 8, 32) of Q4_K and Q5_K: 32 bytes hold twice 32 weights."""
    g = tl.arange(0, 8)
    at = 32 * (g >> 1)[:, None] + tl.arange(0, 32)[None, :]  # (8, 32)
    codes = load_byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    return (codes >> (4 * (g & 1))[None, :, None]) & 15


@triton.jit
def _k_scales(base, mask):
    """Load d * scale and dmin * min of the 8 groups of Q4_K and Q5_K: (ROWS, 8) each."""
    g = tl.arange(0, 8)
    packed = base + 4 + (g & 3)[None, :]
    a, b = load_byte(packed, mask), load_byte(packed + 4, mask)
    c = load_byte(packed + 8, mask)
    is_first = (g < 4)[None, :]
    s = tl.where(is_first, a & 63, (c & 15) | ((a >> 6) << 4))
    m = tl.where(is_first, b & 63, (c >> 4) | ((b >> 6) << 4))
    scale = load_half(base, mask) * s.to(tl.float32)
    return scale, load_half(base + 2, mask) * m.to(tl.float32)

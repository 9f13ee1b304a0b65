"""Blocks of 32 to 128 weights to float32: a chunk has several. Layouts: csrc/formats/blocks.h.

In the types of 4 and 5 bits byte i of the codes holds weight i in its low half, 16 + i in its high
half; they are dequantized as a tile (ROWS, 8 blocks, 2 halves, 16).
"""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.block_loads import load_byte, load_half, load_word

__all__ = [
    "iq4_nl", "mxfp4", "nonlinear", "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q6_0", "q8_0",
]  # fmt: skip

# IQ4's sixteen values, plus 128: a byte each.
_VALUES_0 = tl.constexpr(0x3F2D1801)
_VALUES_1 = tl.constexpr(0x766A5D4F)
_VALUES_2 = tl.constexpr(0xA6998D81 - 2**32)
_VALUES_3 = tl.constexpr(0xF1D9C5B5 - 2**32)

# Twice the eight magnitudes of MXFP4.
_MAGNITUDES_0 = tl.constexpr(0x03020100)
_MAGNITUDES_1 = tl.constexpr(0x0C080604)


@triton.jit
def q8_0(row, chunk, limit, row_ok, IS_PACKED: tl.constexpr):
    d, base, mask = _packed_or_not(row, chunk, limit, row_ok, 32, IS_PACKED)
    i = tl.arange(0, 32)
    codes = tl.load(base[:, :, None] + i[None, None, :], mask=mask[:, :, None], other=0)
    q = codes.to(tl.int8, bitcast=True).to(tl.float32)
    return d[:, :, None] * q


@triton.jit
def q4_0(row, chunk, limit, row_ok, IS_PACKED: tl.constexpr):
    d, base, mask = _packed_or_not(row, chunk, limit, row_ok, 16, IS_PACKED)
    q = _nibbles(base, mask) - 8
    return d[:, :, None, None] * q.to(tl.float32)


@triton.jit
def q4_1(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 20)
    d, m = load_half(base, mask), load_half(base + 2, mask)
    q = _nibbles(base + 4, mask)
    return d[:, :, None, None] * q.to(tl.float32) + m[:, :, None, None]


@triton.jit
def q5_0(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 22)
    d = load_half(base, mask)
    q = (_nibbles(base + 6, mask) | _fifth_bits(base + 2, mask)) - 16
    return d[:, :, None, None] * q.to(tl.float32)


@triton.jit
def q5_1(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 24)
    d, m = load_half(base, mask), load_half(base + 2, mask)
    q = _nibbles(base + 8, mask) | _fifth_bits(base + 4, mask)
    return d[:, :, None, None] * q.to(tl.float32) + m[:, :, None, None]


@triton.jit
def iq4_nl(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 18)
    d = load_half(base, mask)
    q = nonlinear(_nibbles(base + 2, mask))
    return d[:, :, None, None] * q.to(tl.float32)


@triton.jit
def mxfp4(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 17)  # bytes only: blocks lie at odd addresses
    e = load_byte(base, mask)
    half_scale = tl.where(e < 2, 0x00200000 * (e + 1), (e - 1) << 23).to(tl.float32, bitcast=True)
    code = _nibbles(base + 1, mask)
    word = tl.where((code & 4) == 0, _MAGNITUDES_0, _MAGNITUDES_1)
    q = (word >> (8 * (code & 3))) & 15
    q = tl.where((code & 8) == 0, q, -q)
    return half_scale[:, :, None, None] * q.to(tl.float32)


@triton.jit
def q6_0(row, chunk, limit, row_ok):
    base, mask = _blocks(row, chunk, limit, row_ok, 26)
    half = tl.arange(0, 2)[None, None, :, None]
    i = tl.arange(0, 16)[None, None, None, :]
    high = load_byte(base[:, :, None, None] + (2 + (i & 7) + 0 * half), mask[:, :, None, None])
    high = (high >> (4 * (i >> 3) + 2 * half)) & 3
    q = (_nibbles(base + 10, mask) | (high << 4)) - 32
    return load_half(base, mask)[:, :, None, None] * q.to(tl.float32)


@triton.jit
def q1_0(row, chunk, limit, row_ok):
    g = tl.arange(0, 8)
    block = chunk * 2 + (g >> 2)
    base, mask = row[:, None] + 18 * block[None, :], row_ok[:, None] & (block < limit)[None, :]
    i = tl.arange(0, 32)[None, None, :]
    at = 2 + 4 * (g & 3)[None, :, None] + (i >> 3)
    bits = load_byte(base[:, :, None] + at, mask[:, :, None]) >> (i & 7)
    d = load_half(base, mask)[:, :, None]
    return tl.where((bits & 1) == 0, -d, d)


@triton.jit
def q2_0(row, chunk, limit, row_ok):
    g = tl.arange(0, 8)
    block = chunk * 4 + (g >> 1)
    base, mask = row[:, None] + 18 * block[None, :], row_ok[:, None] & (block < limit)[None, :]
    i = tl.arange(0, 32)[None, None, :]
    at = 2 + 8 * (g & 1)[None, :, None] + (i >> 2)
    q = ((load_byte(base[:, :, None] + at, mask[:, :, None]) >> (2 * (i & 3))) & 3) - 1
    return load_half(base, mask)[:, :, None] * q.to(tl.float32)


@triton.jit
def nonlinear(code):
    """Map codes 0-15 to IQ4's values, kept in four words: registers have no indexed loads."""
    low = tl.where(code < 4, _VALUES_0, _VALUES_1)
    high = tl.where(code < 12, _VALUES_2, _VALUES_3)
    return ((tl.where(code < 8, low, high) >> (8 * (code & 3))) & 0xFF) - 128


@triton.jit
def _blocks(row, chunk, limit, row_ok, NUM_BYTES: tl.constexpr):
    """Compute the addresses of a chunk's blocks, and a mask: (ROWS, 8) each."""
    block = chunk * 8 + tl.arange(0, 8)
    return row[:, None] + NUM_BYTES * block[None, :], row_ok[:, None] & (block < limit)[None, :]


@triton.jit
def _packed_or_not(row, chunk, limit, row_ok, CODES: tl.constexpr, IS_PACKED: tl.constexpr):
    """Load d of blocks with CODES bytes of codes; returns d, the codes' addresses, and a mask."""
    if IS_PACKED:
        base, mask = _blocks(row, chunk, limit, row_ok, CODES)
        scales, _ = _blocks(row + CODES * limit, chunk, limit, row_ok, 2)
        d = load_half(scales, mask)
    else:
        base, mask = _blocks(row, chunk, limit, row_ok, CODES + 2)
        d = load_half(base, mask)
        base += 2
    return d, base, mask


@triton.jit
def _nibbles(base, mask):
    """Load codes (ROWS, 8, 2, 16) from the 16 bytes at each base."""
    half = tl.arange(0, 2)[None, None, :, None]
    i = tl.arange(0, 16)[None, None, None, :]
    address = base[:, :, None, None] + 0 * half + i  # both halves of a byte are one load
    return (load_byte(address, mask[:, :, None, None]) >> (4 * half)) & 15


@triton.jit
def _fifth_bits(base, mask):
    """Load bit j of the four bytes at each base, of weight j, as a 16: (ROWS, 8, 2, 16)."""
    bits = load_word(base, mask) | (load_word(base + 2, mask) << 16)
    half = tl.arange(0, 2)[None, None, :, None]
    i = tl.arange(0, 16)[None, None, None, :]
    return ((bits[:, :, None, None] >> (16 * half + i)) & 1) << 4

"""Blocks of ik_llama.cpp's types of 256 weights, a chunk each, to float32.

Layouts: csrc/formats/ik_blocks.h. Codes of up to four bits choose their value from words in
registers, others from a table in memory: `books`, of `codebooks`. A row of the types in `_KS`,
`_KSS` and `_KL` begins with a scale.
"""

from collections.abc import Sequence

import triton
import triton.language as tl

from hybridmoe.kernels.triton.block_loads import blocks_of_256, load_byte, load_half, load_word
from hybridmoe.kernels.triton.codebooks import FIVE_BITS, PAIRS, SIX_BITS
from hybridmoe.kernels.triton.dequant_32 import nonlinear
from hybridmoe.kernels.triton.dequant_256 import nibble_codes, two_bit_codes
from hybridmoe.kernels.value_tables import EIGHT_VALUES, FOUR_VALUES

__all__ = [
    "iq2_k", "iq2_kl", "iq2_ks", "iq3_k", "iq3_ks", "iq4_k", "iq4_ks", "iq4_kss", "iq5_k",
    "iq5_ks", "iq6_k",
]  # fmt: skip


def _word(values: Sequence[int]) -> tl.constexpr:
    """Pack four values, plus 128, to an int32."""
    return tl.constexpr(int.from_bytes([v + 128 for v in values], "little", signed=True))


_FOUR_VALUES = _word(FOUR_VALUES)
_EIGHT_VALUES_0, _EIGHT_VALUES_1 = _word(EIGHT_VALUES[:4]), _word(EIGHT_VALUES[4:])


@triton.jit
def iq2_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 76, 16)
    scale = load_half(base, mask) * (_nibble(base + 4, 16, mask) - 8).to(tl.float32)
    q = _four_values(two_bit_codes(base + 12, mask)) + 5 * _bit(base + 2, 0, 16, mask)[:, :, None]
    return scale[:, :, None] * q.to(tl.float32)


@triton.jit
def iq2_ks(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row + 2, chunk, limit, row_ok, 70, 16)
    s = (_nibble(base + 2, 8, mask) | (_bit(base, 8, 8, mask) << 4)) - 16
    scale = _row_half(row, row_ok) * s.to(tl.float32)
    q = _four_values(two_bit_codes(base + 6, mask)) + 5 * _bit(base, 0, 8, mask)[:, :, None]
    return scale[:, :, None] * q.to(tl.float32)


@triton.jit
def iq2_kl(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row + 2, chunk, limit, row_ok, 86, 8)
    g = tl.arange(0, 8)[None, :]
    low = (load_byte(base + 2 + (g & 3), mask) >> (4 * (g >> 2))) & 15
    s = (low | (((load_word(base, mask) >> (2 * g)) & 3) << 4)) - 32
    scale = _row_half(row, row_ok) * s.to(tl.float32)
    group, i = tl.arange(0, 8)[None, :, None], tl.arange(0, 16)[None, None, :]
    low_bits = load_byte(base[:, :, None] + (6 + 16 * (group >> 1) + i), mask[:, :, None])
    fifth = load_byte(base[:, :, None] + (70 + i + 0 * group), mask[:, :, None])
    index = ((low_bits >> (4 * (group & 1))) & 15) | (((fifth >> group) & 1) << 4)
    pair = tl.load(books + PAIRS + index).to(tl.int32)
    q = ((pair[:, :, :, None] >> (8 * tl.arange(0, 2)[None, None, None, :])) & 255) - 128
    return scale[:, :, None, None] * q.to(tl.float32)


@triton.jit
def iq3_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 110, 16)
    s = (2 * _nibble(base + 6, 16, mask) + 1) * (1 - 2 * _bit(base + 4, 0, 16, mask))
    q = _eight_values(base + 14, base + 78, mask) + 4 * _bit(base + 2, 0, 16, mask)[:, :, None]
    return (load_half(base, mask) * s.to(tl.float32))[:, :, None] * q.to(tl.float32)


@triton.jit
def iq3_ks(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row + 2, chunk, limit, row_ok, 102, 16)
    g = tl.arange(0, 16)[None, :] >> 1
    low = (load_byte(base + 2 + (g & 3), mask) >> (4 * (g >> 2))) & 15
    s = (low | (_bit(base, 0, 8, mask) << 4)) - 16
    q = _eight_values(base + 6, base + 70, mask) + 4 * _bit(base, 8, 8, mask)[:, :, None]
    return (_row_half(row, row_ok) * s.to(tl.float32))[:, :, None] * q.to(tl.float32)


@triton.jit
def iq4_k(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 144, 8)
    g, half = tl.arange(0, 8)[None, :, None], tl.arange(0, 2)[None, None, :]
    base_2, mask_2 = base[:, :, None], mask[:, :, None]
    low = (load_byte(base_2 + 8 + g + 0 * half, mask_2) >> (4 * half)) & 15
    high = (load_byte(base_2 + 4 + (g >> 1) + 0 * half, mask_2) >> (4 * (g & 1) + 2 * half)) & 3
    shift = (load_word(base_2 + 2 + 0 * (g + half), mask_2) >> (2 * g + half)) & 1
    scale = load_half(base, mask)[:, :, None] * ((low | (high << 4)) - 32).to(tl.float32)
    q = nonlinear(nibble_codes(base + 16, mask)) + 4 * shift[:, :, :, None]
    return scale[:, :, :, None] * q.to(tl.float32)


@triton.jit
def iq4_ks(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row + 4, chunk, limit, row_ok, 136, 8)
    s = load_byte(base + tl.arange(0, 8)[None, :], mask)
    scale = _row_float(row, row_ok) * ((s & 254) - 127).to(tl.float32)
    q = nonlinear(nibble_codes(base + 8, mask)) + 4 * (s & 1)[:, :, None, None]
    return scale[:, :, None, None] * q.to(tl.float32)


@triton.jit
def iq4_kss(row, chunk, limit, row_ok):
    base, mask = blocks_of_256(row + 4, chunk, limit, row_ok, 128, 8)
    g = tl.arange(0, 8)[None, :, None, None]
    half = tl.arange(0, 2)[None, None, :, None]
    i = tl.arange(0, 16)[None, None, None, :]
    word_at = base[:, :, None, None] + (16 * g + (i & 14) + 0 * half)
    word = load_word(word_at, mask[:, :, None, None])
    s = load_word(base + 16 * tl.arange(0, 8)[None, :], mask) & 1
    for bit in tl.static_range(1, 8):  # no sum: a reduction beside a reshape is not trusted
        s |= (load_word(base + 16 * tl.arange(0, 8)[None, :] + 2 * bit, mask) & 1) << bit
    even = word & 0xFFFE
    code = ((even ^ (even >> 1)) >> (8 * (i & 1) + 4 * half)) & 15
    scale = _row_float(row, row_ok) * ((s & 254) - 127).to(tl.float32)
    q = nonlinear(code) + 4 * (s & 1)[:, :, None, None]
    return scale[:, :, None, None] * q.to(tl.float32)


@triton.jit
def iq5_k(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 176, 16)
    g = tl.arange(0, 16)[None, :]
    high = (load_byte(base + 4 + (g >> 2), mask) >> (2 * (g & 3))) & 3
    s = (_nibble(base + 8, 16, mask) | (high << 4)) - 32
    shift = _bit(base + 2, 0, 16, mask)
    q = _five_bit_values(base + 16, base + 144, mask, books) + 2 * shift[:, :, None]
    return (load_half(base, mask) * s.to(tl.float32))[:, :, None] * q.to(tl.float32)


@triton.jit
def iq5_ks(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row + 4, chunk, limit, row_ok, 168, 16)
    s = load_byte(base + (tl.arange(0, 16)[None, :] >> 1), mask)
    scale = _row_float(row, row_ok) * ((s & 254) - 127).to(tl.float32)
    q = _five_bit_values(base + 8, base + 136, mask, books) + 2 * (s & 1)[:, :, None]
    return scale[:, :, None] * q.to(tl.float32)


@triton.jit
def iq6_k(row, chunk, limit, row_ok, books):
    base, mask = blocks_of_256(row, chunk, limit, row_ok, 212, 16)
    s = tl.load(base + 4 + tl.arange(0, 16)[None, :], mask=mask, other=0).to(tl.int8, bitcast=True)
    code = _low_nibbles(base + 20, mask) | (two_bit_codes(base + 148, mask) << 4)
    q = tl.load(books + SIX_BITS + code).to(tl.int32) + _bit(base + 2, 0, 16, mask)[:, :, None]
    return (load_half(base, mask) * s.to(tl.float32))[:, :, None] * q.to(tl.float32)


@triton.jit
def _row_half(row, row_ok):
    """Load the binary16 that rows begin with: (ROWS, 1)."""
    return load_half(row, row_ok)[:, None]


@triton.jit
def _row_float(row, row_ok):
    return tl.load(row.to(tl.pointer_type(tl.float32)), mask=row_ok, other=0.0)[:, None]


@triton.jit
def _nibble(address, GROUPS: tl.constexpr, mask):
    """Load nibbles, low first, of 8 or 16 groups for a tile of 16: (ROWS, 16)."""
    g = tl.arange(0, 16)[None, :] // (16 // GROUPS)
    return (load_byte(address + (g >> 1), mask) >> (4 * (g & 1))) & 15


@triton.jit
def _bit(address, FIRST: tl.constexpr, GROUPS: tl.constexpr, mask):
    """Load bits of a word from FIRST on, of 8 or 16 groups for a tile of 16: (ROWS, 16)."""
    g = tl.arange(0, 16)[None, :] // (16 // GROUPS)
    return (load_word(address, mask) >> (FIRST + g)) & 1


@triton.jit
def _bit_plane(base, mask):
    """Load the bits of 32 bytes, of which bit j belongs to weights 32 j and on: (ROWS, 16, 16)."""
    g, i = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    at = 16 * (g & 1) + i
    plane = load_byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    return (plane >> (g >> 1)[None, :, :]) & 1


@triton.jit
def _four_values(code):
    return ((_FOUR_VALUES >> (8 * code)) & 0xFF) - 128


@triton.jit
def _eight_values(two_bits, third_bits, mask):
    code, third = two_bit_codes(two_bits, mask), _bit_plane(third_bits, mask)
    word = tl.where(third == 0, _EIGHT_VALUES_0, _EIGHT_VALUES_1)
    return ((word >> (8 * code)) & 0xFF) - 128


@triton.jit
def _low_nibbles(base, mask):
    """Load codes (ROWS, 16, 16) in the order of Q4_K: 32 bytes hold twice 32 weights."""
    g, i = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    at = 32 * (g >> 2) + 16 * (g & 1) + i
    low = load_byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    return (low >> (4 * ((g >> 1) & 1))[None, :, :]) & 15


@triton.jit
def _five_bit_values(low_bits, fifth_bits, mask, books):
    code = _low_nibbles(low_bits, mask) | (_bit_plane(fifth_bits, mask) << 4)
    return tl.load(books + FIVE_BITS + code).to(tl.int32)

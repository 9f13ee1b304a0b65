"""Products with codes that are loaded as vectors of 16 bytes: 32 weights of a row at a time.

For the types of VECTOR_KINDS, in the layout of `packing`. Tiles have any shape: `rows` varies along
some axes, vectors `v` along others, and each thread holds whole vectors, so that nothing is
exchanged before the last sum. A row's vectors alternate: the low codes of two (K types of 4 and 5
bits) or four of them (Q6_K) come before their high codes, as in the file.

Codes become the bytes of a word, and weight = scale * code - minimum. As bits of a float32 a byte
at bit P is the subnormal number code * 2^(P - 149), exactly. So a mask and a multiply-add are all
that a weight takes: a multiprocessor converts 16 integers a clock, but multiplies and adds 128
numbers, subnormal ones too. x is scaled by 2^(90 - P) before, the sum by 2^59 behind.

Loads are written in PTX: from a `tl.load` Triton takes the layout of the whole kernel, and then
exchanges x through shared memory or loads it for every row. The interpreter, which knows no PTX,
runs plain loads.
"""

import triton
import triton.language as tl

from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

__all__ = ["VECTOR_KINDS", "dot_vectors", "load_x"]

VECTOR_KINDS = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")

_IS_PTX = tl.constexpr(not IS_INTERPRETED)
_LOW = tl.constexpr(0x0F0F0F0F)
_SIGNS = tl.constexpr(0x80808080)


@triton.jit
def _columns(v, KIND: tl.constexpr):
    """Columns of the first low and the first high weight of vectors: 16 of each follow."""
    if KIND == "Q6_K":
        low = 128 * (v // 4) + 16 * (v % 4)
        high = low + 64
    elif (KIND == "Q4_K") | (KIND == "Q5_K"):
        low = 64 * (v // 2) + 16 * (v % 2)
        high = low + 32
    else:
        low = 32 * v
        high = low + 16
    return low, high


@triton.jit
def load_x(x_ptr, v, KIND: tl.constexpr):
    """Load the 32 numbers of x for each vector: a tuple for `dot_vectors`.

    x_ptr: float32, at a multiple of 16 bytes.
    """
    low, high = _columns(v, KIND)
    low_x, low_sum = _scaled_16(x_ptr + low, 0)
    high_x, high_sum = _scaled_16(x_ptr + high, 4 if KIND == "Q4_0" or KIND == "Q4_K" else 0)
    return low_x, high_x, low_sum, high_sum


@triton.jit
def dot_vectors(row, num_cols, v, x, KIND: tl.constexpr):
    """Multiply vectors `v` of rows with x of `load_x`: float32, in the shape of row + v.

    row: addresses of rows, packed if the type has planes. Loads have no masks: give others in place
    of rows and vectors that do not exist.
    """
    low, high, scales, minimums = _load_vectors(row, num_cols, v, KIND)
    if (KIND == "Q4_0") | (KIND == "Q4_K"):
        low_sum, high_sum = _dot_16(low, x[0], 0x0F), _dot_16(high, x[1], 0xF0)
    else:
        low_sum, high_sum = _dot_16(low, x[0], 0xFF), _dot_16(high, x[1], 0xFF)
    codes = (scales[0] * low_sum + scales[1] * high_sum) * 2.0**59
    return codes - (minimums[0] * x[2] + minimums[1] * x[3])


@triton.jit
def _load_vectors(row, num_cols, v, KIND: tl.constexpr):
    """Load codes and scales, see `dot_vectors`.

    Returns four words of low codes, four of high codes, two scales, two minimums. Each byte of the
    words is a code; in Q4_0 and Q4_K they are the same words, with both codes in a byte.
    """
    if KIND == "Q8_0":
        low, high = _flip_signs(_load_16(row + 32 * v)), _flip_signs(_load_16(row + 32 * v + 16))
        d = _half(_load_u16(row + num_cols + 2 * v))
        scales, minimums = (d, d), (128.0 * d, 128.0 * d)
    elif KIND == "Q4_0":
        low = _load_16(row + 16 * v)
        high = low
        d = _half(_load_u16(row + num_cols // 2 + 2 * v))
        scales, minimums = (d, d), (8.0 * d, 8.0 * d)
    elif KIND == "Q4_K":
        block = row + 144 * (v // 8)
        low = _load_16(block + 16 + 16 * (v % 8))
        high = low
        scales, minimums = _k_scales(block, v % 8 // 2)
    elif KIND == "Q5_K":
        block = row + 176 * (v // 8)
        pair = v % 8 // 2
        fifth = _shift_right(_load_16(block + 16 + 16 * (v % 2)), 2 * pair)
        w = _load_16(block + 48 + 16 * (v % 8))
        low = _merge(w, _shift_left(fifth, 4), 0x10101010)
        high = _merge(_shift_right(w, 4), _shift_left(fifth, 3), 0x10101010)
        scales, minimums = _k_scales(block, pair)
    else:
        tl.static_assert(KIND == "Q6_K")
        w = _load_16(row + 16 * v)
        top = _load_16(row + num_cols // 2 + 32 * (v // 4) + 16 * (v % 2))
        top = _shift_right(top, 2 * (v % 4 // 2))
        low = _merge(w, _shift_left(top, 4), 0x30303030)
        high = _merge(_shift_right(w, 4), top, 0x30303030)
        scale = row + 3 * (num_cols // 4) + 8 * (v // 4) + v % 4
        d = _half(_load_u16(row + 13 * (num_cols // 16) + 2 * (v // 8)))
        first = d * _load_s8(scale).to(tl.float32)
        second = d * _load_s8(scale + 4).to(tl.float32)
        scales, minimums = (first, second), (32.0 * first, 32.0 * second)
    return low, high, scales, minimums


@triton.jit
def _k_scales(block, pair):
    """Load scales and minimums of groups 2 pair, 2 pair + 1 of Q4_K and Q5_K."""
    head = _load_16(block)
    shift = 16 * (pair % 2)
    a, b, c = head[1] >> shift, head[2] >> shift, head[3] >> shift  # two groups each
    is_late = pair >= 2
    scale = tl.where(is_late, (c & 0x0F0F) | ((a >> 2) & 0x3030), a & 0x3F3F)
    minimum = tl.where(is_late, ((c >> 4) & 0x0F0F) | ((b >> 2) & 0x3030), b & 0x3F3F)
    d, d_min = _half(head[0]), _half(head[0] >> 16)
    scales = (d * (scale & 255).to(tl.float32), d * (scale >> 8).to(tl.float32))
    minimums = (d_min * (minimum & 255).to(tl.float32), d_min * (minimum >> 8).to(tl.float32))
    return scales, minimums


@triton.jit
def _dot_16(w, x, MASK: tl.constexpr):
    """Multiply the codes of four words with 16 numbers: 2^-59 times the sum."""
    acc = (w[0] & 0).to(tl.float32)
    for i in tl.static_range(4):
        upper = w[i] >> 12  # by 16, the mask would be a bit-field extraction: two instructions
        acc = tl.fma(_subnormal(w[i], MASK), x[4 * i], acc)
        acc = tl.fma(_subnormal(w[i], MASK << 8), x[4 * i + 1], acc)
        acc = tl.fma(_subnormal(upper, MASK << 4), x[4 * i + 2], acc)
        acc = tl.fma(_subnormal(upper, MASK << 12), x[4 * i + 3], acc)
    return acc


@triton.jit
def _subnormal(w, MASK: tl.constexpr):
    return (w & MASK).to(tl.float32, bitcast=True)


@triton.jit
def _scaled_16(p, AT: tl.constexpr):
    """Load 16 numbers, scaled for codes at bit AT of each byte; and their sum."""
    a, b, c, d = _load_4(p), _load_4(p + 4), _load_4(p + 8), _load_4(p + 12)
    total = (_sum_4(a) + _sum_4(b)) + (_sum_4(c) + _sum_4(d))
    return _scaled_4(a, AT) + _scaled_4(b, AT) + _scaled_4(c, AT) + _scaled_4(d, AT), total


@triton.jit
def _sum_4(x):
    return (x[0] + x[1]) + (x[2] + x[3])


@triton.jit
def _scaled_4(x, AT: tl.constexpr):
    """Scale for the places where `_dot_16` has codes: bits 0, 8, 4 and 12, and AT more."""
    return (
        x[0] * 2.0 ** (90 - AT),
        x[1] * 2.0 ** (82 - AT),
        x[2] * 2.0 ** (86 - AT),
        x[3] * 2.0 ** (78 - AT),
    )


@triton.jit
def _flip_signs(w):
    """Add 128 to signed bytes."""
    return w[0] ^ _SIGNS, w[1] ^ _SIGNS, w[2] ^ _SIGNS, w[3] ^ _SIGNS


@triton.jit
def _shift_right(w, n):
    return w[0] >> n, w[1] >> n, w[2] >> n, w[3] >> n


@triton.jit
def _shift_left(w, n):
    return w[0] << n, w[1] << n, w[2] << n, w[3] << n


@triton.jit
def _merge(w, top, TOP: tl.constexpr):
    """Put the bits TOP of `top` above the lower four bits of every byte."""
    a, b = (w[0] & _LOW) | (top[0] & TOP), (w[1] & _LOW) | (top[1] & TOP)
    c, d = (w[2] & _LOW) | (top[2] & TOP), (w[3] & _LOW) | (top[3] & TOP)
    return a, b, c, d


@triton.jit
def _half(bits):
    """The binary16 in the lower two bytes, as float32."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _load_16(p):
    """Load the four words at addresses of weights, multiples of 16."""
    if _IS_PTX:
        w = tl.inline_asm_elementwise(
            "ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [p.to(tl.int64)],
            dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        q = p.to(tl.pointer_type(tl.uint32))
        w = (tl.load(q), tl.load(q + 1), tl.load(q + 2), tl.load(q + 3))
    return w


@triton.jit
def _load_4(p):
    """Load four numbers of x."""
    if _IS_PTX:
        x = tl.inline_asm_elementwise(
            "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [p.to(tl.int64)],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        x = (tl.load(p), tl.load(p + 1), tl.load(p + 2), tl.load(p + 3))
    return x


@triton.jit
def _load_u16(p):
    if _IS_PTX:
        bits = tl.inline_asm_elementwise(
            "ld.global.nc.u16 $0, [$1];", "=r,l", [p.to(tl.int64)], dtype=tl.int32, is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        bits = tl.load(p.to(tl.pointer_type(tl.uint16))).to(tl.int32)
    return bits


@triton.jit
def _load_s8(p):
    if _IS_PTX:
        number = tl.inline_asm_elementwise(
            "ld.global.nc.s8 $0, [$1];", "=r,l", [p.to(tl.int64)], dtype=tl.int32, is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        number = tl.load(p).to(tl.int8, bitcast=True).to(tl.int32)
    return number

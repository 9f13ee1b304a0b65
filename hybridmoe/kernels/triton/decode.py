"""GGUF blocks to float32 in registers: one function per format, inlined into every kernel.

A function decodes a chunk of 256 neighbouring weights of each of ROWS rows: one block of a K type,
eight of Q8_0 and Q4_0. `row` holds the addresses of the rows' first bytes, `chunk` counts chunks
within a row, `limit` is the number of blocks in a row; beyond it, and where `row_ok` is false,
nothing is read and weights are zero. Codes are loaded as a tile (ROWS, groups, weights of a group)
and scales as (ROWS, groups), so that a thread that holds several codes of a group loads and unpacks
its scale once. Layouts: csrc/formats/blocks.h. Every row begins at an even address.
"""

import triton
import triton.language as tl

__all__ = ["CHUNK", "chunk_limit", "decode"]

CHUNK = 256


def chunk_limit(kind: str, cols: int) -> int:
    """What the kernels take as `limit` for rows of `cols` weights."""
    return cols // {"BF16": 1, "F16": 1, "Q4_0": 32, "Q8_0": 32}.get(kind, 256)


@triton.jit
def _half(address, mask):
    """The binary16 at byte addresses, as float32."""
    return tl.load(address.to(tl.pointer_type(tl.float16)), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _byte(address, mask):
    return tl.load(address, mask=mask, other=0).to(tl.int32)


@triton.jit
def _plain(row, chunk, limit, row_ok, ROWS: tl.constexpr, IS_BF16: tl.constexpr):
    k = chunk * 256 + tl.arange(0, 256)
    mask = row_ok[:, None] & (k < limit)[None, :]
    address = row[:, None] + 2 * k[None, :]
    if IS_BF16:
        bits = tl.load(address.to(tl.pointer_type(tl.uint16)), mask=mask, other=0).to(tl.uint32)
        w = (bits << 16).to(tl.float32, bitcast=True)
    else:
        w = _half(address, mask)
    return w


@triton.jit
def _q8_0(row, chunk, limit, row_ok, ROWS: tl.constexpr):
    block = chunk * 8 + tl.arange(0, 8)
    mask = row_ok[:, None] & (block < limit)[None, :]  # (ROWS, 8)
    base = row[:, None] + 34 * block[None, :]
    d = _half(base, mask)
    i = tl.arange(0, 32)
    codes = tl.load(base[:, :, None] + 2 + i[None, None, :], mask=mask[:, :, None], other=0)
    q = codes.to(tl.int8, bitcast=True).to(tl.float32)
    return tl.reshape(d[:, :, None] * q, (ROWS, 256))


@triton.jit
def _q4_0(row, chunk, limit, row_ok, ROWS: tl.constexpr):
    block = chunk * 8 + tl.arange(0, 8)
    mask = row_ok[:, None] & (block < limit)[None, :]  # (ROWS, 8)
    base = row[:, None] + 18 * block[None, :]
    d = _half(base, mask)
    half = tl.arange(0, 2)[None, None, :, None]  # of each byte; a tile of runs of 16 bytes
    i = tl.arange(0, 16)[None, None, None, :]
    address = base[:, :, None, None] + 2 + 0 * half + i  # (ROWS, 8, 2, 16)
    codes = _byte(address, mask[:, :, None, None])
    q = ((codes >> (4 * half)) & 15) - 8
    return tl.reshape(d[:, :, None, None] * q.to(tl.float32), (ROWS, 256))


@triton.jit
def _k_scales(base, mask):
    """d * scale and dmin * min of the 8 groups of Q4_K and Q5_K: (ROWS, 8) each."""
    g = tl.arange(0, 8)
    packed = base + 4 + (g & 3)[None, :]
    a, b, c = _byte(packed, mask), _byte(packed + 4, mask), _byte(packed + 8, mask)
    is_first = (g < 4)[None, :]
    s = tl.where(is_first, a & 63, (c & 15) | ((a >> 6) << 4))
    m = tl.where(is_first, b & 63, (c >> 4) | ((b >> 6) << 4))
    return _half(base, mask) * s.to(tl.float32), _half(base + 2, mask) * m.to(tl.float32)


@triton.jit
def _q4_k(row, chunk, limit, row_ok, ROWS: tl.constexpr):
    g = tl.arange(0, 8)
    i = tl.arange(0, 32)
    block = tl.zeros((8,), tl.int32) + chunk
    mask = row_ok[:, None] & (block < limit)[None, :]  # (ROWS, 8)
    base = row[:, None] + 144 * block[None, :]
    scale, minimum = _k_scales(base, mask)
    at = 16 + 32 * (g >> 1)[:, None] + i[None, :]  # (8, 32)
    codes = _byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    q = (codes >> (4 * (g & 1))[None, :, None]) & 15
    w = scale[:, :, None] * q.to(tl.float32) - minimum[:, :, None]
    return tl.reshape(w, (ROWS, 256))


@triton.jit
def _q5_k(row, chunk, limit, row_ok, ROWS: tl.constexpr):
    g = tl.arange(0, 8)
    i = tl.arange(0, 32)
    block = tl.zeros((8,), tl.int32) + chunk
    mask = row_ok[:, None] & (block < limit)[None, :]  # (ROWS, 8)
    base = row[:, None] + 176 * block[None, :]
    scale, minimum = _k_scales(base, mask)
    at = 48 + 32 * (g >> 1)[:, None] + i[None, :]  # (8, 32)
    codes = _byte(base[:, :, None] + at[None, :, :], mask[:, :, None])
    fifth = _byte(base[:, :, None] + (16 + i)[None, None, :], mask[:, :, None])
    q = ((codes >> (4 * (g & 1))[None, :, None]) & 15) | (((fifth >> g[None, :, None]) & 1) << 4)
    w = scale[:, :, None] * q.to(tl.float32) - minimum[:, :, None]
    return tl.reshape(w, (ROWS, 256))


@triton.jit
def _q6_k(row, chunk, limit, row_ok, ROWS: tl.constexpr):
    g = tl.arange(0, 16)
    i = tl.arange(0, 16)
    block = tl.zeros((16,), tl.int32) + chunk
    mask = row_ok[:, None] & (block < limit)[None, :]  # (ROWS, 16)
    base = row[:, None] + 210 * block[None, :]
    s = tl.load(base + 192 + g[None, :], mask=mask, other=0).to(tl.int8, bitcast=True)
    scale = _half(base + 208, mask) * s.to(tl.float32)
    low_at = (64 * (g >> 3) + 16 * (g & 3))[:, None] + i[None, :]  # (16, 16)
    high_at = (128 + 32 * (g >> 3) + 16 * (g & 1))[:, None] + i[None, :]
    low = _byte(base[:, :, None] + low_at[None, :, :], mask[:, :, None])
    high = _byte(base[:, :, None] + high_at[None, :, :], mask[:, :, None])
    low_shift, high_shift = 4 * ((g & 7) >> 2), 2 * ((g & 7) >> 1)
    q = ((low >> low_shift[None, :, None]) & 15) | (((high >> high_shift[None, :, None]) & 3) << 4)
    w = scale[:, :, None] * (q - 32).to(tl.float32)
    return tl.reshape(w, (ROWS, 256))


@triton.jit
def decode(row, chunk, limit, row_ok, KIND: tl.constexpr, ROWS: tl.constexpr):
    """Weights 256 chunk ... + 255 of the rows: (ROWS, 256) f32, zeros where there are none."""
    if KIND == "BF16":
        w = _plain(row, chunk, limit, row_ok, ROWS, True)
    elif KIND == "F16":
        w = _plain(row, chunk, limit, row_ok, ROWS, False)
    elif KIND == "Q8_0":
        w = _q8_0(row, chunk, limit, row_ok, ROWS)
    elif KIND == "Q4_0":
        w = _q4_0(row, chunk, limit, row_ok, ROWS)
    elif KIND == "Q4_K":
        w = _q4_k(row, chunk, limit, row_ok, ROWS)
    elif KIND == "Q5_K":
        w = _q5_k(row, chunk, limit, row_ok, ROWS)
    else:
        tl.static_assert(KIND == "Q6_K")
        w = _q6_k(row, chunk, limit, row_ok, ROWS)
    return w

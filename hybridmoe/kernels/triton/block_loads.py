"""Addresses and loads of block fields, for the functions that dequantize blocks."""

import triton
import triton.language as tl

__all__ = ["blocks_of_256", "load_byte", "load_half", "load_word"]


@triton.jit
def load_half(address, mask):
    """Load the binary16 at byte addresses as float32."""
    return tl.load(address.to(tl.pointer_type(tl.float16)), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_byte(address, mask):
    return tl.load(address, mask=mask, other=0).to(tl.int32)


@triton.jit
def load_word(address, mask):
    """Load the two bytes at even addresses."""
    return tl.load(address.to(tl.pointer_type(tl.uint16)), mask=mask, other=0).to(tl.int32)


@triton.jit
def blocks_of_256(row, chunk, limit, row_ok, NUM_BYTES: tl.constexpr, GROUPS: tl.constexpr):
    """Compute a block's address for each of its groups, and a mask: (ROWS, GROUPS) each."""
    block = tl.zeros((GROUPS,), tl.int32) + chunk
    return row[:, None] + NUM_BYTES * block[None, :], row_ok[:, None] & (block < limit)[None, :]

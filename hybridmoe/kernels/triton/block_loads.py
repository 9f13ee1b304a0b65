"""Loads of block fields, for the functions that dequantize blocks."""

import triton
import triton.language as tl

__all__ = ["load_byte", "load_half", "load_word"]


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

"""Kernels for a CUDA card, in Triton; importing this needs `pip install hybridmoe[cuda]`."""

from hybridmoe.kernels.triton.attention import latent_attention
from hybridmoe.kernels.triton.experts import SlotLayout, expert_ffn
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.kernels.triton.product import batched_linear, dequantize, linear

__all__ = [
    "DeviceMatrix",
    "SlotLayout",
    "batched_linear",
    "dequantize",
    "expert_ffn",
    "latent_attention",
    "linear",
]

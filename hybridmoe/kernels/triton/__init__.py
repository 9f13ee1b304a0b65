"""Kernels for a CUDA card, in Triton; importing this needs `pip install hybridmoe[cuda]`."""

from hybridmoe.kernels.triton.decode_attention import latent_attention
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn
from hybridmoe.kernels.triton.matmul import batched_linear, dequantize, linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix

__all__ = [
    "DeviceMatrix",
    "SlotLayout",
    "batched_linear",
    "dequantize",
    "expert_ffn",
    "latent_attention",
    "linear",
]

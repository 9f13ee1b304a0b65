"""Kernels for a CUDA card, in Triton; importing this needs `pip install hybridmoe[cuda]`."""

from hybridmoe.kernels.triton.attention import latent_attention
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.kernels.triton.product import batched_linear, dequantize, linear

__all__ = ["DeviceMatrix", "batched_linear", "dequantize", "latent_attention", "linear"]

"""Triton kernels for NVIDIA GPUs; importing a module needs the extra `cuda`."""

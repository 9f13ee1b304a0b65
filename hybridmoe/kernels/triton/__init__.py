"""Triton kernels for NVIDIA GPUs; importing a module needs `pip install hybridmoe[cuda]`."""

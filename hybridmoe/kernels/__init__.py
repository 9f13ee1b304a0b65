"""Functions of tensors on the CPU: quantised products, MLA, routed experts; `triton` for GPUs."""

from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import (
    batched_linear,
    dequantize,
    expert_ffn,
    gather_rows,
    linear,
    num_threads,
    set_num_threads,
)

__all__ = [
    "QuantMatrix",
    "batched_linear",
    "dequantize",
    "expert_ffn",
    "gather_rows",
    "linear",
    "num_threads",
    "set_num_threads",
]

"""Rate of one token's products from the cache: what decode would reach if memory were no bound."""

import time

import numpy as np
import torch

from hybridmoe.gguf.quant_types import QuantType, tensor_bytes
from hybridmoe.kernels import ops

__all__ = ["measure_products"]

_COLS, _SECONDS = 2048, 0.08


def measure_products(bytes_of_thread: int) -> float:
    """Bytes of Q4_K a second that all threads multiply, each with about as many bytes of its own.

    Weights are zeros, which take as long as others. The fastest call counts: other programs can
    only slow the others.
    """
    row_bytes = tensor_bytes(QuantType.Q4_K, (1, _COLS))
    rows = max(64, bytes_of_thread // row_bytes // 64 * 64) * ops.num_threads()
    data = np.zeros(rows * row_bytes, np.uint8)
    weights = ops.QuantMatrix(data, QuantType.Q4_K, 1, rows, _COLS)
    x = torch.ones(1, _COLS)
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < end or not seconds:
        ops.linear(x, weights)
        seconds.append(time.perf_counter() - started)
    return data.size / min(seconds)

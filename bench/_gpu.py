"""Rates of a CUDA GPU by itself: copies, the link, products of one token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from bench.synthetic import fill_random
from hybridmoe.kernels.triton.matmul import linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix

__all__ = ["copy_rate", "describe_gpu", "gemv_rate", "gpu_seconds", "link_rate"]

_TURNS, _COPY_BYTES, _LINK_BYTES = 9, 1 << 30, 256 << 20
_READ_BYTES = 1 << 30  # of matrices that take turns, so that the GPU's cache holds none


def describe_gpu() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
    }


def copy_rate() -> float:
    """Bytes/s, read and written, of a copy within the GPU's memory."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / gpu_seconds(lambda: target.copy_(source))


def link_rate() -> float:
    """Bytes/s to the GPU from pinned memory."""
    source = torch.ones(_LINK_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty(_LINK_BYTES, dtype=torch.uint8, device="cuda")
    return _LINK_BYTES / gpu_seconds(lambda: target.copy_(source, non_blocking=True))


def gemv_rate(kind: Type, rows: int, cols: int) -> float:
    """Bytes/s of weights that a product with one token reads, launched from a graph."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = np.empty(rows * cols // block * block_bytes, np.uint8)
    fill_random(data, np.random.default_rng(0), (rows, cols), kind)
    count = max(2, _READ_BYTES // data.nbytes)
    matrices = [
        DeviceMatrix(torch.from_numpy(data).to("cuda"), kind, 1, rows, cols) for _ in range(count)
    ]
    x = torch.randn((1, cols), device="cuda")
    linear(x, matrices[0])  # compiled before it is captured
    with _graph() as graph:
        for matrix in matrices:
            linear(x, matrix)
    return count * data.nbytes / gpu_seconds(graph.replay)


def gpu_seconds(call: Callable[[], object]) -> float:
    """Median time of a call, by the GPU's own clock."""
    seconds = []
    for turn in range(-2, _TURNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if turn >= 0:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return median(seconds)


@contextmanager
def _graph() -> Iterator[torch.cuda.CUDAGraph]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph

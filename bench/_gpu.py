"""Rates of a CUDA GPU by itself: copies, the link, products of one token, experts in slots."""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

import numpy as np
import torch

from bench.synthetic import fill_random
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.gguf.quant_types import tensor_bytes
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn
from hybridmoe.kernels.triton.matmul import linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix

__all__ = ["copy_rate", "describe_gpu", "gemv_rates", "gpu_seconds", "link_rate", "slot_rate"]

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


def gemv_rates(kind: Type, rows: int, cols: int, tokens: Iterable[int]) -> dict[int, float]:
    """Bytes/s of weights that products read, launched from a graph, by their number of tokens."""
    data = np.empty(tensor_bytes(kind, (rows, cols)), np.uint8)
    fill_random(data, np.random.default_rng(0), (rows, cols), kind)
    w = QuantMatrix(data, kind, 1, rows, cols)
    matrices = [
        DeviceMatrix.from_host(w, "cuda") for _ in range(max(2, _READ_BYTES // data.nbytes))
    ]
    found = {}
    for count in tokens:
        x = torch.randn((count, cols), device="cuda")
        linear(x, matrices[0])  # compiled before it is captured
        calls = (partial(linear, x, matrix) for matrix in matrices)
        found[count] = len(matrices) * data.nbytes / _graph_seconds(calls)
    return found


def slot_rate(layout: SlotLayout, top_k: int) -> float:
    """Bytes/s of experts that decoding one token reads in slots, launched from a graph."""
    num_steps = max(2, _READ_BYTES // (top_k * layout.slot_bytes))
    shape = (num_steps * top_k, layout.slot_bytes)
    data = torch.randint(0, 60, shape, dtype=torch.uint8, device="cuda")  # small scales: no NaN
    slots = torch.arange(shape[0], dtype=torch.int32, device="cuda").view(num_steps, 1, top_k)
    x = torch.randn((1, layout.hidden), device="cuda")
    weights = torch.ones((1, top_k), device="cuda")
    expert_ffn(x, slots[0], weights, data, layout)  # compiled before it is captured
    calls = (partial(expert_ffn, x, chosen, weights, data, layout) for chosen in slots)
    return data.nbytes / _graph_seconds(calls)


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


def _graph_seconds(calls: Iterable[Callable[[], object]]) -> float:
    """Median time of calls in one CUDA graph, which is gone before the next one is captured."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return gpu_seconds(graph.replay)

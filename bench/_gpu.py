"""Rates of a CUDA GPU by itself: copies, the link, products of one token, experts in slots."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from bench.synthetic import fill_random
from hybridmoe.gguf.names import parse_name, part_of
from hybridmoe.gguf.outline import read_outline
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn
from hybridmoe.kernels.triton.matmul import linear
from hybridmoe.kernels.triton.matrix import MATRIX_TYPES, DeviceMatrix
from hybridmoe.planning.rates import GpuRates

__all__ = [
    "copy_rate", "decode_rates", "describe_gpu", "gemv_rate", "gemv_rates", "gpu_seconds",
    "link_rate", "slot_rate",
]  # fmt: skip

_TURNS, _COPY_BYTES, _LINK_BYTES = 9, 1 << 30, 256 << 20
_MOST_SHAPES = 8  # of dense matrices, those of most weights
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
    return gemv_rates(kind, rows, cols, (1,))[1]


def gemv_rates(kind: Type, rows: int, cols: int, tokens: Iterable[int]) -> dict[int, float]:
    """Bytes/s of weights, as `gemv_rate`, for each number of tokens."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = np.empty(rows * cols // block * block_bytes, np.uint8)
    fill_random(data, np.random.default_rng(0), (rows, cols), kind)
    w = QuantMatrix(data, kind, 1, rows, cols)
    matrices = [
        DeviceMatrix.from_host(w, "cuda") for _ in range(max(2, _READ_BYTES // data.nbytes))
    ]
    found = {}
    for count in tokens:
        x = torch.randn((count, cols), device="cuda")
        linear(x, matrices[0])  # compiled before it is captured
        with _graph() as graph:
            for matrix in matrices:
                linear(x, matrix)
        found[count] = len(matrices) * data.nbytes / gpu_seconds(graph.replay)
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
    with _graph() as graph:
        for chosen in slots:
            expert_ffn(x, chosen, weights, data, layout)
    return data.nbytes / gpu_seconds(graph.replay)


def decode_rates(path: Path) -> GpuRates:
    """Rates of decoding this model: one token's products by type, experts in slots."""
    outline = read_outline(path)
    c, dense = outline.config, Counter[tuple[Type, int, int]]()
    experts: dict[str, Type] = {}
    for tensor in outline.tensors:
        role = parse_name(tensor.name).role
        if part_of(role) == "routed experts":
            experts.setdefault(role, tensor.type)
        elif (
            part_of(role) != "embedding" and tensor.type in MATRIX_TYPES and len(tensor.shape) == 2
        ):
            dense[tensor.type, *tensor.shape] += prod(tensor.shape)
    seconds: Counter[Type] = Counter()
    num_bytes: Counter[Type] = Counter()
    for (kind, rows, cols), _ in dense.most_common(_MOST_SHAPES):
        count = dense[kind, rows, cols] // (rows * cols)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = count * rows * cols // block * block_bytes
        num_bytes[kind] += size
        seconds[kind] += size / gemv_rate(kind, rows, cols)  # type: ignore[assignment]
    rates = GpuRates.assumed(copy_rate() / 1e9, 100.0, link_rate() / 1e9)
    gate, up, down = (experts[f"ffn_{name}_exps"] for name in ("gate", "up", "down"))
    return replace(
        rates,
        one_token={kind: num_bytes[kind] / s for kind, s in seconds.items()},
        slots=slot_rate(SlotLayout(gate, up, down, c.hidden, c.expert_inter).packed, c.top_k),
    )


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

"""llama.cpp's routed experts as a peer: its own operators on the same weights, through ctypes.

The graph is the one that llama.cpp builds for a layer's routed experts: `mul_mat_id` for gate and
up, SwiGLU, `mul_mat_id` for down, weights, sum. The library is the one in llama-cpp-python, with
its default CPU buffers: what `use_extra_bufts = false` gives, and what IQ types always get.
"""

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import llama_cpp
import numpy as np
import torch

from bench._experts import HIDDEN, TOP_K, Call, Stack
from hybridmoe.kernels.ops import QuantMatrix

__all__ = ["GgmlExperts"]

_F32, _I32 = 0, 26
_GRAPH_NODES = 256


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _load() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-cpu.so.0"))))
    pointer, size = c_void_p, c_int64
    for name, result, *arguments in (
        ("ggml_init", pointer, _InitParams),
        ("ggml_free", None, pointer),
        ("ggml_new_tensor_2d", pointer, pointer, c_int, size, size),
        ("ggml_new_tensor_3d", pointer, pointer, c_int, size, size, size),
        ("ggml_set_input", None, pointer),
        ("ggml_set_output", None, pointer),
        ("ggml_get_data", pointer, pointer),
        ("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer),
        ("ggml_swiglu_split", pointer, pointer, pointer, pointer),
        ("ggml_mul", pointer, pointer, pointer, pointer),
        ("ggml_add", pointer, pointer, pointer, pointer),
        ("ggml_view_2d", pointer, pointer, pointer, size, size, c_size_t, c_size_t),
        ("ggml_new_graph_custom", pointer, pointer, c_size_t, c_bool),
        ("ggml_build_forward_expand", None, pointer, pointer),
        ("ggml_backend_cpu_init", pointer),
        ("ggml_backend_cpu_set_n_threads", None, pointer, c_int),
        ("ggml_backend_cpu_buffer_type", pointer),
        ("ggml_backend_cpu_buffer_from_ptr", pointer, pointer, c_size_t),
        ("ggml_backend_buffer_free", None, pointer),
        ("ggml_backend_tensor_alloc", c_int, pointer, pointer, pointer),
        ("ggml_backend_graph_compute", c_int, pointer, pointer),
        ("ggml_backend_free", None, pointer),
        ("ggml_gallocr_new", pointer, pointer),
        ("ggml_gallocr_alloc_graph", c_bool, pointer, pointer),
        ("ggml_gallocr_free", None, pointer),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class GgmlExperts:
    """Runs a `Stack` for calls of one number of tokens."""

    def __init__(self, stack: Stack, num_tokens: int, num_threads: int) -> None:
        self._ggml = g = _load()
        self._weights = stack.weights  # borrowed by the tensors below
        self._backend = g.ggml_backend_cpu_init()
        g.ggml_backend_cpu_set_n_threads(self._backend, num_threads)
        self._context = context = g.ggml_init(_InitParams(1 << 20, None, True))
        self._buffers: list[int] = []
        gate, up, down = (self._matrices(matrix) for matrix in stack.weights)
        self._x = g.ggml_new_tensor_3d(context, _F32, HIDDEN, 1, num_tokens)
        self._ids = g.ggml_new_tensor_2d(context, _I32, TOP_K, num_tokens)
        self._shares = g.ggml_new_tensor_3d(context, _F32, 1, TOP_K, num_tokens)
        for tensor in (self._x, self._ids, self._shares):
            g.ggml_set_input(tensor)
        hidden = g.ggml_swiglu_split(
            context,
            g.ggml_mul_mat_id(context, gate, self._x, self._ids),
            g.ggml_mul_mat_id(context, up, self._x, self._ids),
        )  # (T, K, I)
        outputs = g.ggml_mul_mat_id(context, down, hidden, self._ids)  # (T, K, H)
        outputs = g.ggml_mul(context, outputs, self._shares)
        row = ctypes.sizeof(c_float) * HIDDEN
        total: int | None = None
        for k in range(TOP_K):
            one = g.ggml_view_2d(context, outputs, HIDDEN, num_tokens, TOP_K * row, k * row)
            total = one if total is None else g.ggml_add(context, total, one)
        self._out = total
        g.ggml_set_output(total)
        self._graph = g.ggml_new_graph_custom(context, _GRAPH_NODES, False)
        g.ggml_build_forward_expand(self._graph, total)
        self._allocator = g.ggml_gallocr_new(g.ggml_backend_cpu_buffer_type())
        if not g.ggml_gallocr_alloc_graph(self._allocator, self._graph):
            raise MemoryError("llama.cpp cannot allocate its graph")

    def forward(self, call: Call) -> None:
        """Compute; the result stays in ggml's memory."""
        for tensor, data in (
            (self._x, call.x),
            (self._ids, call.ids),
            (self._shares, call.weights),
        ):
            ctypes.memmove(self._ggml.ggml_get_data(tensor), data.data_ptr(), data.nbytes)
        if self._ggml.ggml_backend_graph_compute(self._backend, self._graph) != 0:
            raise RuntimeError("llama.cpp's graph failed")

    def result(self, num_tokens: int) -> torch.Tensor:
        """The last output (T, H)."""
        address = self._ggml.ggml_get_data(self._out)
        values = np.ctypeslib.as_array((c_float * (num_tokens * HIDDEN)).from_address(address))
        return torch.from_numpy(values.copy()).view(num_tokens, HIDDEN)

    def close(self) -> None:
        self._ggml.ggml_gallocr_free(self._allocator)
        for buffer in self._buffers:
            self._ggml.ggml_backend_buffer_free(buffer)
        self._ggml.ggml_free(self._context)
        self._ggml.ggml_backend_free(self._backend)

    def _matrices(self, m: QuantMatrix) -> int:
        tensor: int = self._ggml.ggml_new_tensor_3d(
            self._context, int(m.type), m.cols, m.rows, m.batch
        )
        buffer = self._ggml.ggml_backend_cpu_buffer_from_ptr(m.data.ctypes.data, m.num_bytes)
        self._buffers.append(buffer)
        if self._ggml.ggml_backend_tensor_alloc(buffer, tensor, m.data.ctypes.data) != 0:
            raise MemoryError(f"llama.cpp does not take {m.type.name} weights in place")
        return tensor

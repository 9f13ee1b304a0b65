"""Quantize arrays to GGUF blocks, by llama.cpp's own quantizers, or make random blocks.

The quantizers of IQ1 and IQ2 need up to ten seconds to set themselves up. Where it matters only
that the blocks are valid and their values random, `random_blocks` makes them at once.
"""

import ctypes
import functools
import importlib.util
import math
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hybridmoe.gguf.quant_types import QuantType, block_layout, row_bytes
from hybridmoe.kernels.reference_dequantize import dequantize_rows

F32 = GGMLQuantizationType.F32

# What llama-quantize can write, as far as gguf-py can read it back.
_NAMES = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS "
    "IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4"
)
QUANTIZED_TYPES = tuple(GGMLQuantizationType[name] for name in _NAMES.split(" "))
ALL_TYPES = (F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16, *QUANTIZED_TYPES)

SLOW_TYPES = tuple(kind for kind in QUANTIZED_TYPES if kind.name.startswith(("IQ1", "IQ2")))
IK_TYPES = tuple(kind for kind in QuantType if kind >= QuantType.Q6_0)  # which it has not
RANDOM_TYPES = (*SLOW_TYPES, *IK_TYPES)


def quantize(values: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
    """float32 (..., row length) to the bytes of a type (..., row bytes); F32 and F16 as arrays.

    The quantizers are llama.cpp's own, from llama-cpp-python, with an all-ones importance matrix.
    """
    values = np.ascontiguousarray(values, np.float32)
    if type == F32:
        return values
    if type == GGMLQuantizationType.F16:
        return values.astype(np.float16)
    if type == GGMLQuantizationType.BF16:
        return gguf.quantize(values, type)
    block, block_bytes = GGML_QUANT_SIZES[type]
    cols = values.shape[-1]
    rows = values.size // cols
    out = np.empty((*values.shape[:-1], cols // block * block_bytes), np.uint8)
    importance = np.ones(cols, np.float32)
    written = _ggml().ggml_quantize_chunk(
        int(type), values.ctypes.data, out.ctypes.data, 0, rows, cols, importance.ctypes.data
    )
    assert written == out.nbytes, (type, written, out.nbytes)
    return out


def random_blocks(
    shape: tuple[int, ...], type: QuantType, deviation: float, seed: int
) -> np.ndarray:
    """Rows of one of `RANDOM_TYPES` with random codes, and one scale that gives `deviation`."""
    assert type in RANDOM_TYPES, type
    size = (math.prod(shape[:-1]), row_bytes(type, shape[-1]))
    rows = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    _set_scale(rows, type, 1.0)
    _set_scale(rows, type, deviation / float(dequantize_rows(rows, type).std()))
    return rows.reshape(*shape[:-1], -1)


def _set_scale(rows: np.ndarray, type: QuantType, scale: float) -> None:
    """Set the scale of each row or block: its first bytes, or four nibbles in IQ1_M."""
    layout = block_layout(type)
    if layout.row_scale_bytes:
        scales = np.full((len(rows), 1), scale, f"<f{layout.row_scale_bytes}")
        rows[:, : layout.row_scale_bytes] = scales.view(np.uint8)
        return
    blocks = rows.reshape(-1, layout.num_bytes)
    if type == QuantType.IQ1_M:
        bits = int(np.float16(scale).view(np.uint16))
        for i in range(4):
            high = blocks[:, 49 + 2 * i]
            high[:] = high & 0x0F | (bits >> 4 * i & 0x0F) << 4
    else:
        blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)


@functools.cache
def _ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "llama-cpp-python is not installed"
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library

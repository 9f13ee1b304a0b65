"""Random weights in any GGUF block format: random bits where any bits are valid, finite scales."""

import numpy as np
import torch

from hybridmoe import _C
from hybridmoe.gguf.quant_types import QuantType, block_layout, row_bytes
from hybridmoe.kernels.matrix import QuantMatrix

TYPES = tuple(QuantType(type_id) for type_id in _C.TYPES)

_HALF_OFFSETS = {  # byte offsets of the binary16 scales in a block
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "Q1_0": (0,), "Q2_0": (0,), "Q6_0": (0,), "IQ2_K": (0,), "IQ3_K": (0,), "IQ4_K": (0,),
    "IQ5_K": (0,), "IQ6_K": (0,),
}  # fmt: skip


def rounds_activations(kind: QuantType) -> bool:
    """True if products with this type round their activations to int8."""
    return _C.TYPES[kind][2]


def block_weights(kind: QuantType) -> int:
    return block_layout(kind).weights


def random_matrix(kind: QuantType, batch: int, rows: int, cols: int, seed: int = 0) -> QuantMatrix:
    """A stack of matrices whose scales are normal around zero, so that both signs of all occur."""
    rng = np.random.default_rng([seed, int(kind), batch, rows, cols])
    weights, num_bytes, row_scale_bytes = block_layout(kind)
    if row_scale_bytes:
        data = rng.integers(0, 256, (batch * rows, row_bytes(kind, cols)), dtype=np.uint8)
        scales = (0.1 * rng.standard_normal((len(data), 1))).astype(f"<f{row_scale_bytes}")
        data[:, :row_scale_bytes] = scales.view(np.uint8)
        return QuantMatrix(data.reshape(-1), kind, batch, rows, cols)
    count = batch * rows * cols // weights
    blocks = rng.integers(0, 256, (count, num_bytes), dtype=np.uint8)
    values = rng.standard_normal((count, 1)).astype(np.float32)
    match kind.name:
        case "F32":
            blocks = values.view(np.uint8)
        case "F16":
            blocks = values.astype(np.float16).view(np.uint8)
        case "BF16":
            blocks = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        case "MXFP4":
            blocks[:, 0] = rng.integers(120, 130, count)
        case "NVFP4":
            blocks[:, :4] &= 0x7F
        case "IQ1_M":  # a nibble of the scale at the top of each of four words
            words = blocks[:, 48:56].copy().view(np.uint16)
            half = (0.1 * values).astype(np.float16).view(np.uint16)
            shifts = np.array([0, 4, 8, 12], np.uint16)
            words = (words & 0xFFF) | (((half >> shifts) & 15) << 12)
            blocks[:, 48:56] = words.astype(np.uint16).view(np.uint8)
        case name:
            for i, offset in enumerate(_HALF_OFFSETS[name]):
                half = (0.1 * np.roll(values, i)).astype(np.float16)
                blocks[:, offset : offset + 2] = half.view(np.uint8)
    return QuantMatrix(np.ascontiguousarray(blocks).reshape(-1), kind, batch, rows, cols)


def greatest_codes(kind: QuantType, rows: int, cols: int) -> QuantMatrix:
    """A random matrix of the codes that are farthest from zero, as they are multiplied."""
    w = random_matrix(kind, 1, rows, cols)
    blocks = w.data.reshape(-1, block_layout(kind).num_bytes)
    is_scale = np.zeros(blocks.shape[1], bool)
    for offset in _HALF_OFFSETS[kind.name]:
        is_scale[offset : offset + 2] = True
    blocks[:, ~is_scale] = 0x80 if kind == QuantType.Q8_0 else 0xFF
    return w


def activations(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers with outliers and a block of zeros, like a model's residual."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::37] *= 20
    x[..., : min(32, shape[-1] // 2)] = 0
    return x

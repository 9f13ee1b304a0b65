"""Dequantization: the bits of gguf.quants, for random blocks and for quantised weights."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.quants import GGML_QUANT_SIZES
from random_weights import TYPES, block_weights, random_matrix
from tiny_quantize import QUANTIZED_TYPES, SLOW_TYPES, quantize

from hybridmoe import _C
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops, reference
from hybridmoe.kernels.matrix import QuantMatrix


def assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


def test_every_type_that_gguf_decodes_is_here() -> None:
    decodable = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, *quants._type_traits}
    assert set(TYPES) >= decodable


def test_block_sizes_are_those_of_gguf() -> None:
    sizes = {GGMLQuantizationType(i): tuple(info[1:3]) for i, info in _C.TYPES.items()}
    assert sizes == {kind: GGML_QUANT_SIZES[kind] for kind in TYPES}
    assert all(_C.TYPES[kind][0] == kind.name for kind in TYPES)


@pytest.mark.parametrize("name", isa.supported())
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks_decode_to_the_same_bits(name: str, kind: GGMLQuantizationType) -> None:
    w = random_matrix(kind, 2, 5, 64 * block_weights(kind))
    with isa.forced(name):
        assert_same_bits(ops.dequantize(w), reference.dequantize(w))


@pytest.mark.parametrize("name", isa.supported())
@pytest.mark.parametrize("kind", [k for k in TYPES if k.name in ("F16", "Q8_0", "MXFP4", "NVFP4")])
def test_every_scale_decodes_to_the_same_bits(name: str, kind: GGMLQuantizationType) -> None:
    """All finite binary16 numbers, subnormals and both zeros; all 8-bit exponents."""
    weights, num_bytes = GGML_QUANT_SIZES[kind]
    half = np.arange(65536, dtype=np.uint16)
    half = half[(half & 0x7C00) != 0x7C00]
    small = np.arange(256, dtype=np.uint8)
    match kind.name:
        case "F16":
            blocks = half.view(np.uint8).reshape(-1, 2)
        case "Q8_0":
            blocks = np.full((len(half), num_bytes), 77, np.uint8)
            blocks[:, :2] = half.view(np.uint8).reshape(-1, 2)
        case _:
            blocks = np.full((256, num_bytes), 0x3A, np.uint8)
            blocks[:, : num_bytes - weights // 2] = small[:, None]
    w = QuantMatrix(blocks.reshape(-1), kind, 1, len(blocks), weights)
    with isa.forced(name), np.errstate(over="ignore"):
        assert_same_bits(ops.dequantize(w), reference.dequantize(w))


# IQ1 and IQ2 quantisers take ten seconds each to set up, and their decoding is covered above.
@pytest.mark.parametrize("kind", sorted({*QUANTIZED_TYPES} - {*SLOW_TYPES}), ids=lambda k: k.name)
def test_quantised_weights_decode_to_the_same_bits(kind: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(3)
    weights = (0.05 * rng.standard_normal((6, 512))).astype(np.float32)
    w = QuantMatrix(quantize(weights, kind).reshape(-1), kind, 1, 6, 512)
    decoded = ops.dequantize(w)
    assert_same_bits(decoded, reference.dequantize(w))
    correlation = np.corrcoef(decoded.numpy().ravel(), weights.ravel())[0, 1]
    assert correlation > 0.5  # the weights themselves, not another sound reading of the bytes

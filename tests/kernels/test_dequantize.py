"""Dequantization: the bits of gguf.quants, for random blocks and for quantised weights; of
ik_llama.cpp for its types.
"""

import hashlib

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.quants import GGML_QUANT_SIZES
from random_weights import TYPES, block_weights, random_matrix
from tiny_quantize import QUANTIZED_TYPES, SLOW_TYPES, quantize

from hybridmoe import _C
from hybridmoe.gguf.quant_types import QuantType, block_layout, row_bytes
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops, reference
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.value_tables import SIXTY_FOUR_VALUES


def assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


def test_every_type_that_gguf_decodes_is_here() -> None:
    decodable = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, *quants._type_traits}
    assert set(TYPES) >= decodable


def test_block_sizes_are_those_of_gguf() -> None:
    of_gguf = {kind for kind in QuantType if kind in GGML_QUANT_SIZES}
    assert {kind.name for kind in of_gguf} == {kind.name for kind in GGML_QUANT_SIZES}
    assert all(kind.layout == (*GGML_QUANT_SIZES[kind], 0) for kind in of_gguf)


def test_the_kernels_have_the_sizes_of_the_types() -> None:
    assert all(_C.TYPES[kind][:2] == (kind.name, kind.layout) for kind in TYPES)


# SHA-256 of what ik_llama.cpp's dequantize_row_iq4_ks and its like (commit 8337e4c, 2026-08), or
# llama.cpp's (2026-10), decode the rows of `golden_row` to: its code was built and run by hand.
GOLDEN = {
    QuantType.Q1_0: "e845584b8345ab48a2b871618a8e6087d492bdd0a7d0cbb2b92213fa6b794b2f",
    QuantType.Q2_0: "70ecb8f1e8a65a4fad51452118f1ae68a5fb5fee1d87b05a5a20d8dac8ac7acb",
    QuantType.Q6_0: "b730f95eb17fdb203a3eca5c5d7f1cdbbde4af2be596057ef95c9444c6ea8f82",
    QuantType.IQ2_K: "3e179f647662121164ab3b1bf4f953343d1845ab9e08e8980dfd212828ca1b49",
    QuantType.IQ2_KS: "79cb16d97c2cbfc93dc7f58e06eae9d13d7051b798ecf9ccef2dfa66ad12cd9e",
    QuantType.IQ2_KL: "4cd59531a6e6a584f3a6768c7683502bccec99488494c4b9e9f606b7b1575b27",
    QuantType.IQ3_K: "8a09e27e5b53787f6301ea51eb021c3025dc2c44f22116e2a20197e668961fd9",
    QuantType.IQ3_KS: "254d3fa5278cc6e1011401c268299f858db7e370a72c6b4eb5c5bd762486e8e7",
    QuantType.IQ4_K: "a7b825ba665e5723aac140d96312169826f129e887b81016826ba3b327fb0488",
    QuantType.IQ4_KS: "1e87e8c2ecacf9acd3d85be01fbf80a45194be35eb07d1f37a09d50518f0e1e0",
    QuantType.IQ4_KSS: "82ceee3cafa89eca2f191d865f2ac8f283e5b2fdc416b95d9aec20c839cdc20f",
    QuantType.IQ5_K: "d82b4e06ca265d535d0418b58a39673b3b67f2a630e3088a02b1733a866f26fa",
    QuantType.IQ5_KS: "ec4fec9903dce8d36e389d8f42fca011209d63ff97ea5cd207233b9b66296205",
}


def test_the_values_of_six_bits_round_ik_llama_cpps_cubic() -> None:
    """Its products use the table, its dequantization alone the cubic (iqk_quantize.cpp)."""
    q = np.arange(64)
    cubic = -127 + q * (6.2568 + q * (-0.11218 + q * 0.0011972))
    assert np.array_equal(np.rint(cubic), SIXTY_FOUR_VALUES)


def golden_row(kind: QuantType) -> np.ndarray:
    """Two blocks of 256 weights of SHAKE-128's bytes, all scales 0.75."""
    cols = 512
    row = np.frombuffer(hashlib.shake_128(kind.name.encode()).digest(row_bytes(kind, cols)), "u1")
    row, layout = row.copy(), block_layout(kind)
    scale = np.array(0.75, f"<f{layout.row_scale_bytes or 2}").reshape(1).view(np.uint8)
    if layout.row_scale_bytes:
        row[: len(scale)] = scale
    else:
        row.reshape(-1, layout.num_bytes)[:, : len(scale)] = scale
    return row


@pytest.mark.parametrize("kind", GOLDEN, ids=lambda kind: kind.name)
def test_rows_decode_to_what_the_project_that_made_the_type_decodes(kind: QuantType) -> None:
    decoded = ops.dequantize(QuantMatrix(golden_row(kind), kind, 1, 1, 512)).numpy()
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == GOLDEN[kind]


@pytest.mark.parametrize("name", isa.supported())
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks_decode_to_the_same_bits(name: str, kind: QuantType) -> None:
    w = random_matrix(kind, 2, 5, 64 * block_weights(kind))
    with isa.forced(name):
        assert_same_bits(ops.dequantize(w), reference.dequantize(w))


@pytest.mark.parametrize("name", isa.supported())
@pytest.mark.parametrize("kind", [k for k in TYPES if k.name in ("F16", "Q8_0", "MXFP4", "NVFP4")])
def test_every_scale_decodes_to_the_same_bits(name: str, kind: QuantType) -> None:
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

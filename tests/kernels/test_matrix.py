"""Stacks of matrices: rows of another stack, and factors of its matrices.

Factors are powers of two, so that they change no rounding: results have the same bits as those of
weights that hold the factors.
"""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import TYPES, activations, block_weights, random_matrix

from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops, reference
from hybridmoe.kernels.matrix import QuantMatrix

T = GGMLQuantizationType
EXPERTS, HIDDEN, INTER = 4, 512, 96


def packed(w: QuantMatrix) -> QuantMatrix:
    """Copy a stack, each matrix right behind the one before."""
    parts = [w.slice(i, i + 1).data for i in range(w.batch)]
    return QuantMatrix(np.concatenate(parts), w.type, w.batch, w.rows, w.cols)


def with_factors(w: QuantMatrix, factors: list[float]) -> tuple[QuantMatrix, QuantMatrix]:
    """(w with factors, weights that hold them) of F32 or Q8_0."""
    scales = np.array(factors, np.float32)
    scaled = QuantMatrix(w.data, w.type, w.batch, w.rows, w.cols, scales=scales)
    data = w.data.copy().reshape(w.batch, -1)
    for matrix, factor in zip(data, factors, strict=True):
        if w.type == T.F32:
            matrix.view(np.float32)[:] *= np.float32(factor)
        else:
            blocks = matrix.reshape(-1, 34)
            d = blocks[:, :2].copy().view(np.float16) * np.float16(factor)
            blocks[:, :2] = d.view(np.uint8)
    return scaled, QuantMatrix(data.reshape(-1), w.type, w.batch, w.rows, w.cols)


def routing(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(-1, EXPERTS, (tokens, 3), generator=generator, dtype=torch.int32)
    return ids, torch.rand((tokens, 3), generator=generator)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_rows_of_each_matrix_are_a_view(kind: GGMLQuantizationType) -> None:
    cols = max(64, block_weights(kind))
    both = random_matrix(kind, 3, 10, cols)
    upper = both.slice_rows(4, 9)
    assert upper.stride == both.matrix_bytes and np.shares_memory(upper.data, both.data)
    want = ops.dequantize(both)[:, 4:9]
    for found in (
        ops.dequantize(upper),
        ops.dequantize(packed(upper)),
        reference.dequantize(upper),
    ):
        assert torch.equal(found, want)
    assert torch.equal(ops.dequantize(upper.slice(1, 3)), want[1:3])
    assert upper.slice(3, 3).num_bytes == 0


@pytest.mark.parametrize("kind", [T.F32, T.BF16, T.Q4_0, T.Q4_K, T.NVFP4], ids=lambda t: t.name)
def test_gate_and_up_in_one_tensor_give_the_same_bits(
    each_isa: str, kind: GGMLQuantizationType
) -> None:
    both = random_matrix(kind, EXPERTS, 2 * INTER, HIDDEN)
    down = random_matrix(T.Q8_0, EXPERTS, HIDDEN, INTER)
    gate, up = both.slice_rows(0, INTER), both.slice_rows(INTER, 2 * INTER)
    for tokens in (1, 5, 40, 150):
        x, (ids, weights) = 0.01 * activations(tokens, HIDDEN), routing(tokens)
        apart = ops.expert_ffn(x, ids, weights, packed(gate), packed(up), down)
        assert torch.equal(ops.expert_ffn(x, ids, weights, gate, up, down), apart)


@pytest.mark.parametrize("kind", [T.F32, T.Q8_0], ids=lambda kind: kind.name)
def test_factors_are_those_of_the_weights(each_isa: str, kind: GGMLQuantizationType) -> None:
    factors = [2.0, 4.0, 1.0, 8.0]
    (gate, gate_held), (up, up_held), (down, down_held) = (
        with_factors(
            random_matrix(kind, EXPERTS, rows, cols, seed), np.roll(factors, seed).tolist()
        )
        for seed, (rows, cols) in enumerate(((INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER)))
    )
    assert torch.equal(ops.dequantize(gate), ops.dequantize(gate_held))
    assert torch.equal(reference.dequantize(gate), ops.dequantize(gate_held))
    for tokens in (1, 5, 40, 150):
        x, (ids, weights) = 0.01 * activations(tokens, HIDDEN), routing(tokens)
        want = ops.expert_ffn(x, ids, weights, gate_held, up_held, down_held)
        assert torch.equal(ops.expert_ffn(x, ids, weights, gate, up, down), want)
        stack = x.expand(EXPERTS, -1, -1)
        assert torch.equal(ops.batched_linear(stack, gate), ops.batched_linear(stack, gate_held))
        one, one_held = gate.slice(1, 2), gate_held.slice(1, 2)
        assert torch.equal(ops.linear(x, one), ops.linear(x, one_held))
    rows = torch.tensor([3, 0])
    assert torch.equal(ops.gather_rows(one, rows), ops.gather_rows(one_held, rows))


def test_a_stack_that_does_not_fit_is_refused() -> None:
    w = random_matrix(T.F32, 2, 3, 8)
    for stride in (95, 90, 4):
        with pytest.raises(ShapeError, match="bytes"):
            QuantMatrix(w.data, w.type, 2, 3, 8, stride)
    with pytest.raises(ShapeError, match=r"scales are float32 \(1,\), expected float32 \(2,\)"):
        QuantMatrix(w.data, w.type, 2, 3, 8, scales=np.ones(1, np.float32))
    with pytest.raises(ShapeError, match="slice 2:4 of 3 rows"):
        w.slice_rows(2, 4)

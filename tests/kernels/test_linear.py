"""Products with quantised matrices: every format, every instruction set, awkward shapes."""

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import (
    TYPES,
    activations,
    block_weights,
    greatest_codes,
    random_matrix,
    rounds_activations,
)

from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix

F32 = GGMLQuantizationType.F32
Q4_K = GGMLQuantizationType.Q4_K
Q8_0 = GGMLQuantizationType.Q8_0


def check_linear(x: torch.Tensor, w: QuantMatrix, got: torch.Tensor) -> None:
    exact_x = x.double().numpy()
    if rounds_activations(w.type):
        exact_x, _ = closeness.rounded(exact_x)
    weights, offsets = closeness.weights(w)[0], closeness.offsets(w)[0]
    bound = closeness.product_bound(exact_x, 0.0, weights, offsets)
    closeness.assert_close(got, exact_x @ weights.T, bound, f"{w.type.name} {tuple(x.shape)}")


def column_counts(kind: GGMLQuantizationType) -> list[int]:
    """Columns: one block, a few, and more than a group of 256, with a remainder if possible."""
    weights = block_weights(kind)
    if weights == 1:
        return [1, 16, 39, 275]
    return [weights, 3 * weights, 512 + weights]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_linear_is_within_the_bound(each_exact_isa: str, kind: GGMLQuantizationType) -> None:
    for cols in column_counts(kind):
        w = random_matrix(kind, 1, 11, cols)
        for tokens in (1, 3, 17):
            x = activations(tokens, cols)
            check_linear(x, w, ops.linear(x, w))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_weights_do_not_round_activations(each_isa: str, kind: str) -> None:
    w = random_matrix(GGMLQuantizationType[kind], 1, 45, 531)
    assert not rounds_activations(w.type)  # what the bounds of other tests go by
    for tokens in (1, 2, 7, 40):
        x = activations(tokens, 531)
        want = x.double().numpy() @ closeness.weights(w)[0].T
        error = np.linalg.norm(ops.linear(x, w).numpy() - want)
        assert error < 2.0**-15 * np.linalg.norm(want), tokens  # of 8 bits it would be 2^-9


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_wrong_scale_is_seen(kind: GGMLQuantizationType) -> None:
    cols = max(256, block_weights(kind))
    w = random_matrix(kind, 1, 11, cols)
    x = activations(3, cols)
    wrong = x.clone()
    wrong[:, 64:96] *= 1.01  # one block of the activations, the other 224 weights right
    with pytest.raises(AssertionError, match="out of bounds"):
        check_linear(x, w, ops.linear(wrong, w))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_token_is_the_same_alone_and_in_a_batch(
    each_exact_isa: str, kind: GGMLQuantizationType
) -> None:
    """More rows and columns than kernels of few tokens take at once; rows that are no pairs."""
    cols = 2304 + block_weights(kind)
    w = random_matrix(kind, 1, 45, cols)
    x = activations(18, cols)
    alone = torch.cat([ops.linear(x[t : t + 1], w) for t in range(18)])
    for tokens in (*range(2, 10), 18):
        assert torch.equal(ops.linear(x[:tokens], w), alone[:tokens]), tokens


@pytest.mark.parametrize("kind", [Q4_K, GGMLQuantizationType.Q6_K], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 16, 17, 33])
def test_few_rows_of_a_batch(each_exact_isa: str, kind: GGMLQuantizationType, rows: int) -> None:
    w = random_matrix(kind, 1, rows, 512)
    x = activations(11, 512)
    alone = torch.cat([ops.linear(x[t : t + 1], w) for t in range(11)])
    assert torch.equal(ops.linear(x, w), alone)


@pytest.mark.parametrize("kind", [F32, Q4_K, Q8_0, GGMLQuantizationType.IQ3_S], ids=str)
def test_threads_do_not_change_a_bit(restore_threads: None, kind: GGMLQuantizationType) -> None:
    w = random_matrix(kind, 1, 203, 768)
    x = activations(5, 768)
    results = []
    for threads in (1, 2, 3):
        ops.set_num_threads(threads)
        results.append(ops.linear(x, w))
    assert all(torch.equal(results[0], result) for result in results[1:])


def every_byte(kind: QuantType) -> QuantMatrix:
    """Row i: codes (TQ1_0) or scales (NVFP4) of a group are all the byte i."""
    if kind is QuantType.TQ1_0:
        one = np.frombuffer(np.float16(1.0).tobytes(), np.uint8)
        data = np.hstack(
            [np.arange(256, dtype=np.uint8)[:, None].repeat(52, 1), np.tile(one, (256, 1))]
        )
    else:
        codes = np.random.default_rng(0).integers(0, 256, (256, 4, 32), np.uint8)
        scales = np.arange(256, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
        data = np.concatenate([scales, codes], 2)
    return QuantMatrix(np.ascontiguousarray(data).reshape(-1), kind, 1, 256, 256)


@pytest.mark.parametrize("kind", [QuantType.TQ1_0, QuantType.NVFP4], ids=lambda kind: kind.name)
def test_every_byte_is_multiplied_as_it_decodes(each_exact_isa: str, kind: QuantType) -> None:
    w = every_byte(kind)
    for tokens in (1, 3, 11):
        x = activations(tokens, 256)
        check_linear(x, w, ops.linear(x, w))


@pytest.mark.skipif(len(isa.supported()) < 3, reason="no two vector instruction sets here")
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_vector_instruction_sets_agree_bit_for_bit(kind: GGMLQuantizationType) -> None:
    w = random_matrix(kind, 1, 11, 512 + block_weights(kind))
    x = activations(3, w.cols)  # few enough for AMX not to take tiles
    results = []
    for name in isa.supported():
        if name != "scalar":
            with isa.forced(name):
                results.append(torch.cat([ops.linear(x, w), ops.linear(x[:1], w)]))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_a_stack_is_its_matrices(each_isa: str) -> None:
    w = random_matrix(Q8_0, 5, 12, 96)
    x = activations(5, 3, 96)
    got = ops.batched_linear(x, w)
    for b in range(5):
        assert torch.equal(got[b], ops.linear(x[b], w.slice(b, b + 1)))


def test_rows_may_lie_anywhere(each_isa: str) -> None:
    w = random_matrix(Q4_K, 3, 12, 256)
    x = activations(4, 3, 300)  # (T, B, K + 44)
    out = torch.zeros(4, 3, 20)
    ops.batched_linear(x[..., :256].transpose(0, 1), w, out=out[..., :12].transpose(0, 1))
    want = ops.batched_linear(x[..., :256].transpose(0, 1).contiguous(), w)
    assert torch.equal(out[..., :12], want.transpose(0, 1)) and not out[..., 12:].any()


def test_nothing_in_gives_nothing_out() -> None:
    w = random_matrix(Q8_0, 1, 4, 64)
    assert ops.linear(torch.zeros(0, 64), w).shape == (0, 4)
    assert ops.linear(torch.zeros(2, 64), random_matrix(Q8_0, 1, 0, 64)).shape == (2, 0)
    assert torch.equal(ops.linear(torch.zeros(2, 64), w), torch.zeros(2, 4))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [F32, Q4_K, Q8_0, GGMLQuantizationType.IQ2_S], ids=str)
def test_a_poisoned_token_spoils_only_itself(
    each_isa: str, kind: GGMLQuantizationType, poison: float
) -> None:
    w = random_matrix(kind, 1, 6, 512)
    x = activations(3, 512)
    clean = ops.linear(x, w)
    x[1, 300] = poison
    got = ops.linear(x, w)
    assert not torch.isfinite(got[1]).any()
    assert torch.equal(got[0], clean[0]) and torch.equal(got[2], clean[2])


def test_extreme_activations_do_not_overflow(each_isa: str) -> None:
    w = random_matrix(Q8_0, 1, 6, 320)  # rounded as a group of 256, and as two blocks
    for scale in (1e-45, 1e-37, 2.0**-120, 1e30):
        x = activations(2, 320) * scale
        check_linear(x, w, ops.linear(x, w))
        x[:, 32:64] = x[:, 288:] = 0.5  # each block has a scale of its own
        check_linear(x, w, ops.linear(x, w))


@pytest.mark.parametrize("kind", [Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.NVFP4])
@pytest.mark.parametrize("cols", [64, 320])
def test_a_damaged_row_spoils_only_itself(
    each_isa: str, kind: GGMLQuantizationType, cols: int
) -> None:
    w, x = random_matrix(kind, 1, 12, cols), activations(1, cols)
    clean = ops.linear(x, w)
    data = w.data.copy()
    for row in (4, 7):
        data[row * w.row_bytes : (row + 1) * w.row_bytes] = 0x7F  # scales are NaN
    got = ops.linear(x, QuantMatrix(data, w.type, 1, w.rows, w.cols))
    others = [row for row in range(12) if row not in (4, 7)]
    assert torch.equal(got[:, others], clean[:, others])
    assert not torch.equal(got[:, [4, 7]], clean[:, [4, 7]])


@pytest.mark.parametrize(
    "kind",
    [
        *(QuantType.Q4_0, QuantType.Q4_1, QuantType.Q5_0, QuantType.Q5_1, QuantType.Q8_0),
        *(QuantType.Q2_K, QuantType.Q3_K, QuantType.Q4_K, QuantType.Q5_K, QuantType.Q6_K),
    ],
    ids=lambda kind: kind.name,
)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["+", "-"])
def test_sums_of_the_greatest_codes_do_not_saturate(
    each_isa: str, kind: QuantType, sign: float
) -> None:
    w = greatest_codes(kind, 32, 512)
    for tokens in (1, 8, 12):
        x = torch.full((tokens, 512), sign)
        check_linear(x, w, ops.linear(x, w))


def test_gather_rows_is_dequantize(each_isa: str) -> None:
    w = random_matrix(Q4_K, 1, 9, 512)
    ids = torch.tensor([8, 0, 3, 3])
    assert torch.equal(ops.gather_rows(w, ids), ops.dequantize(w)[ids])


def test_wrong_arguments_are_refused() -> None:
    w = random_matrix(Q8_0, 2, 4, 64)
    one = w.slice(0, 1)
    with pytest.raises(ShapeError, match=r"expected .*\(any, 64\)"):
        ops.linear(torch.zeros(2, 32), one)
    with pytest.raises(ShapeError, match=r"float64"):
        ops.linear(torch.zeros(2, 64, dtype=torch.float64), one)
    with pytest.raises(ShapeError, match="contiguous rows"):
        ops.linear(torch.zeros(64, 2).T, one)
    with pytest.raises(ShapeError, match="stack of 2"):
        ops.linear(torch.zeros(2, 64), w)
    with pytest.raises(ShapeError, match="3 batches"):
        ops.batched_linear(torch.zeros(3, 2, 64), w)
    for bad in (-1, 4):
        with pytest.raises(ShapeError, match=f"id {bad} at position 1"):
            ops.gather_rows(one, torch.tensor([0, bad]))
    with pytest.raises(ShapeError, match="1024"):
        ops.set_num_threads(0)


def test_wrong_matrices_are_refused() -> None:
    data = np.zeros(4 * 68, np.uint8)
    with pytest.raises(ShapeError, match="272 bytes, expected 340"):
        QuantMatrix(data, Q8_0, 1, 5, 64)
    with pytest.raises(ShapeError, match="multiple of 32"):
        QuantMatrix(data, Q8_0, 1, 4, 65)
    with pytest.raises(ShapeError, match="no CPU kernel"):
        QuantMatrix(data, GGMLQuantizationType.I8, 1, 4, 68)
    with pytest.raises(ShapeError, match="not usable"):
        QuantMatrix(data, Q8_0, 1, -4, 64)
    with pytest.raises(ShapeError, match="expected"):
        QuantMatrix(data, Q8_0, 2**30, 2**39, 2**20)
    with pytest.raises(ShapeError, match="uint8"):
        QuantMatrix(data.astype(np.int32), Q8_0, 1, 4, 64)
    with pytest.raises(ShapeError, match="aligned"):
        QuantMatrix(np.zeros(9, np.uint8)[1:], F32, 1, 1, 2)
    with pytest.raises(ShapeError, match="slice"):
        QuantMatrix(data, Q8_0, 1, 4, 64).slice(0, 2)


@pytest.mark.parametrize("kind", [Q8_0, F32], ids=lambda kind: kind.name)
def test_tasks_of_rows_and_of_tokens_do_not_change_a_bit(
    restore_threads: None, kind: GGMLQuantizationType
) -> None:
    """Few rows and many tokens are divided by tokens, too."""
    w, x = random_matrix(kind, 3, 70, 288), activations(3 * 101, 288).view(3, 101, 288)
    ops.set_num_threads(1)
    want = ops.batched_linear(x, w)
    for threads in (2, 3, 7, 40):
        ops.set_num_threads(threads)
        out = torch.full_like(want, float("nan"))
        assert torch.equal(ops.batched_linear(x, w, out), want), threads

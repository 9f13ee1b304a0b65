"""Products by AMX tiles: bfloat16 weights and activations, sums in float32.

bfloat16 has 8 significant bits, so a weight and an activation are each rounded by at most 2^-8 of
themselves: over the K terms of a product that is at most 2^-7 |w| . |x| (and a little). In the root
of the mean of squares, with significands m in [1, 2) spread evenly over their logarithm, a factor's
error is 2^-8 sqrt(mean(1 / m^2) / 3) = 2^-8 sqrt(3 / (8 ln 2) / 3), and that of both 0.6 2^-8. The
sums are float32, added one after the other.

bfloat16 weights are exact, and their activations the sum of two bfloat16: what these leave is at
most 2^-16 of an activation.
"""

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import TYPES, block_weights, random_matrix

from hybridmoe import _C
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix

T = GGMLQuantizationType
TILED = [kind for kind in TYPES if kind not in (T.F32, T.F16)]

pytestmark = pytest.mark.usefixtures("amx")


def activations(*shape: int, seed: int = 1) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::37] *= 20
    return x


def check(x: torch.Tensor, w: QuantMatrix, got: torch.Tensor) -> None:
    exact_x = x.double().numpy()
    weights, offsets = closeness.weights(w)[0], closeness.offsets(w)[0]
    want, magnitude = exact_x @ weights.T, np.abs(exact_x) @ np.abs(weights).T
    parts = np.abs(exact_x) @ (np.abs(weights - offsets) + np.abs(offsets)).T
    of_terms, spread = (2.0**-16, 2.0**-16) if w.type == T.BF16 else (2.0**-7, 0.6 * 2.0**-8)
    bound = of_terms * magnitude + (2 * w.cols + 16) * 2.0**-24 * parts
    what = f"{w.type.name} {tuple(x.shape)}"
    closeness.assert_close(got, want, 1.01 * bound, what)
    error = np.sqrt(np.mean((got.double().numpy() - want) ** 2))
    expected = spread * np.sqrt(np.mean(exact_x**2 @ weights.T**2))
    assert error < 1.4 * expected, f"{what}: error {error:.3g}, expected {expected:.3g}"


@pytest.mark.parametrize("kind", TILED, ids=lambda kind: kind.name)
def test_products_are_within_the_bound(kind: GGMLQuantizationType) -> None:
    block = block_weights(kind)
    for rows, cols in ((27, block), (33, 512 + block), (160, 3 * max(block, 32))):
        w = random_matrix(kind, 1, rows, cols)
        for tokens in (16, 17, 40, 200):
            assert _C.takes_tiles(int(kind), rows, tokens)
            x = activations(tokens, cols)
            check(x, w, ops.linear(x, w))


def test_a_wrong_scale_is_seen() -> None:
    w = random_matrix(T.Q4_K, 1, 64, 512)
    x = activations(32, 512)
    wrong = x.clone()
    wrong[:, 64:192] *= 1.01
    with pytest.raises(AssertionError, match="error"):
        check(x, w, ops.linear(wrong, w))


@pytest.mark.parametrize("kind", [T.Q4_K, T.Q8_0, T.BF16], ids=lambda kind: kind.name)
def test_neighbours_and_threads_do_not_change_a_bit(
    restore_threads: None, kind: GGMLQuantizationType
) -> None:
    w = random_matrix(kind, 1, 203, 768)
    x = activations(230, 768)
    whole = ops.linear(x, w)
    for first, last in ((0, 16), (3, 40), (100, 230)):
        assert torch.equal(ops.linear(x[first:last], w), whole[first:last])
    for threads in (1, 3):
        ops.set_num_threads(threads)
        assert torch.equal(ops.linear(x, w), whole)


def test_many_tokens_and_columns_in_parts_have_the_same_bits() -> None:
    w = random_matrix(T.Q8_0, 1, 40, 4384)  # three parts for twelve tiles of tokens, one for one
    x = activations(200, 4384)
    got = ops.linear(x, w)
    check(x, w, got)
    parts = torch.cat([ops.linear(x[t : t + 16], w) for t in range(0, 176, 16)])
    assert torch.equal(got[:176], parts)


def test_a_poisoned_token_poisons_no_other() -> None:
    w = random_matrix(T.Q4_K, 1, 64, 512)
    x = activations(40, 512)
    clean = ops.linear(x, w)
    x[7, 100] = float("nan")
    got = ops.linear(x, w)
    assert got[7].isnan().all()
    others = [t for t in range(40) if t != 7]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("kinds", [(T.Q4_K, T.Q6_K), (T.Q4_0, T.Q8_0), (T.BF16, T.Q5_1)], ids=str)
def test_experts_with_few_and_with_many_tokens(
    restore_threads: None, kinds: tuple[GGMLQuantizationType, GGMLQuantizationType]
) -> None:
    hidden, inter, experts = (512, 256, 6) if kinds[0] == T.Q4_K else (320, 160, 6)
    gate = random_matrix(kinds[0], experts, inter, hidden, seed=1)
    up = random_matrix(kinds[0], experts, inter, hidden, seed=2)
    down = random_matrix(kinds[1], experts, hidden, inter, seed=3)
    generator = torch.Generator().manual_seed(5)
    x = 0.02 * torch.randn((150, hidden), generator=generator)
    ids = torch.randint(-1, 4, (150, 3), generator=generator, dtype=torch.int32)
    ids[ids == 3] = -1  # expert 3 has no tokens, 4 has one, 5 has two
    ids[7, 0], ids[8, 1], ids[9, 2] = 4, 5, 5
    weights = torch.rand((150, 3), generator=generator)
    with isa.forced("avx512"):
        want = ops.expert_ffn(x, ids, weights, gate, up, down)
    got = ops.expert_ffn(x, ids, weights, gate, up, down)
    assert not torch.equal(got, want)
    assert (got - want).norm() < 0.02 * want.norm()  # both round: int8 there, bfloat16 here
    ops.set_num_threads(1)
    assert torch.equal(ops.expert_ffn(x, ids, weights, gate, up, down), got)


def test_experts_of_bfloat16_keep_their_activations() -> None:
    gate, up = (random_matrix(T.BF16, 2, 160, 320, seed=seed) for seed in (1, 2))
    down = random_matrix(T.BF16, 2, 320, 160, seed=3)
    x = 0.02 * torch.randn((40, 320), generator=torch.Generator().manual_seed(5))
    ids, weights = torch.ones((40, 1), dtype=torch.int32), torch.ones((40, 1))
    with isa.forced("avx512"):
        want = ops.expert_ffn(x, ids, weights, gate, up, down)
    got = ops.expert_ffn(x, ids, weights, gate, up, down)
    assert not torch.equal(got, want)
    assert (got - want).norm() < 2.0**-15 * want.norm()  # one bfloat16 leaves 2^-9


def test_tiles_are_closer_than_rounding_to_int8() -> None:
    w = random_matrix(T.Q4_K, 1, 256, 1024)
    x = activations(64, 1024)
    want = x.double().numpy() @ closeness.weights(w)[0].T
    tiles = np.linalg.norm(ops.linear(x, w).numpy() - want)
    with isa.forced("avx512"):
        assert tiles < 0.7 * np.linalg.norm(ops.linear(x, w).numpy() - want)


def test_small_steps_have_the_bits_of_the_int8_kernels() -> None:
    w = random_matrix(T.Q4_K, 1, 256, 512)
    x = activations(15, 512)
    alone = torch.cat([ops.linear(x[t : t + 1], w) for t in range(15)])
    assert torch.equal(ops.linear(x, w), alone)

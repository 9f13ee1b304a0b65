"""Latent attention against float64, and the bits that must not depend on anything else."""

import pytest
import torch
from test_linear import restore_threads

from hybridmoe.errors import ShapeError
from hybridmoe.kernels import isa, ops, reference

__all__ = ["restore_threads"]  # a fixture

SCALE = 0.25
BLOCK = 256  # csrc/kernels/kernel_table.h: kAttentionBlock
SHAPES = [  # heads, tokens, latent, rope, positions
    (4, 1, 32, 8, 1),
    (3, 5, 40, 10, 5),
    (64, 1, 64, 16, BLOCK + 1),
    (6, 70, 24, 6, 2 * BLOCK),
    (128, 2, 16, 4, 3 * BLOCK + 7),
    (5, 300, 17, 0, 300),
]

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(heads: int, tokens: int, latent: int, rope: int, positions: int) -> Inputs:
    generator = torch.Generator().manual_seed(heads + tokens)
    shapes = ((heads, tokens, latent), (tokens, heads, rope), (positions, latent + rope))
    a, b, c = (torch.randn(shape, generator=generator) for shape in shapes)
    return a, b, c


def error_bound(x: Inputs) -> torch.Tensor:
    """Of each result; u = 2^-24.

    A score is a chain of D = R + P rounded products: off by at most (D + 2) u |q| . |k|. A softmax
    whose scores are off by e is off by a factor of e^(2 e); its exponentials (4 u each), the sum
    and the weighted values, chains of a block's 256 terms and then of blocks, add 2 n u with
    n = 256 + S / 256 + 16.
    """
    u = 2.0**-24
    queries = torch.cat((x[0], x[1].transpose(0, 1)), -1).double().abs()
    keys = x[2].double().abs()
    scores = (queries.shape[-1] + 2) * u * SCALE * (queries @ keys.T).amax(-1)  # (N, T)
    relative = torch.expm1(2 * scores) + 2 * u * (BLOCK + len(keys) / BLOCK + 16)
    return relative[..., None] * keys[:, : x[0].shape[-1]].amax(0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_within_the_bound(each_isa: str, shape: tuple[int, ...]) -> None:
    x = inputs(*shape)
    error = (ops.latent_attention(*x, SCALE) - reference.latent_attention(*x, SCALE)).abs()
    assert (error <= error_bound(x)).all(), float((error / error_bound(x)).max())


def test_a_token_has_the_same_bits_alone_and_in_a_prompt(each_isa: str) -> None:
    a, b, latents = inputs(6, 40, 24, 6, BLOCK + 20)
    whole = ops.latent_attention(a, b, latents, SCALE)
    for t in (0, 19, 20, 39):  # around the end of a block, too
        seen = latents[: len(latents) - 39 + t]
        alone = ops.latent_attention(
            a[:, t : t + 1].contiguous(), b[t : t + 1].contiguous(), seen, SCALE
        )
        assert torch.equal(alone[:, 0], whole[:, t])


def test_threads_and_instruction_sets_do_not_change_the_bits(restore_threads: None) -> None:
    x = inputs(16, 3, 32, 8, 5 * BLOCK)
    results = []
    for threads in (1, 2, 16):
        ops.set_num_threads(threads)
        for name in isa.supported():
            if name != "scalar":  # no fused multiply-add
                with isa.forced(name):
                    results.append(ops.latent_attention(*x, SCALE))
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_lies_in_the_future_does_not_matter() -> None:
    a, b, latents = inputs(4, 8, 16, 4, 20)
    changed = latents.clone()
    changed[-1] = 7.0
    before, after = (ops.latent_attention(a, b, keys, SCALE) for keys in (latents, changed))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_a_nan_reaches_the_tokens_that_see_it() -> None:
    a, b, latents = inputs(2, 4, 16, 4, 4)
    latents[2, 3] = float("nan")
    out = ops.latent_attention(a, b, latents, SCALE)
    assert out[:, 2:].isnan().any(-1).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b, latents = inputs(2, 4, 16, 4, 8)
    for x in ((a, b, latents[:3]), (a, b[:2], latents), (a[0], b, latents), (a, b, latents[:, 1:])):
        with pytest.raises(ShapeError, match="latent_attention"):
            ops.latent_attention(*x, SCALE)

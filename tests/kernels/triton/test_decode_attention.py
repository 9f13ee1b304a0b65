"""Decode attention of the GPU, against float64."""

from collections.abc import Sequence

import closeness
import pytest
import torch

from hybridmoe.errors import ShapeError
from hybridmoe.kernels import reference

pytest.importorskip("triton", reason="needs triton")

from kernel_device import on_device
from triton_bounds import U, bfloat16, dot_bound

from hybridmoe.kernels.triton import decode_attention as attention
from hybridmoe.kernels.triton.decode_attention import plan_attention

latent_attention = on_device(attention.latent_attention)

SCALE = 0.25
BATCHES = [  # heads, latent, rope, positions that each token sees
    (1, 16, 16, [1]),
    (5, 40, 10, [64, 1, 300, 0, 33]),
    (18, 32, 8, [65, 97]),
    (16, 17, 3, [130]),
]

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(
    heads: int, latent: int, rope: int, seen: Sequence[int], dtype: torch.dtype = torch.bfloat16
) -> Inputs:
    """Make queries, and a KV cache in scattered pages."""
    generator = torch.Generator().manual_seed(heads)
    tokens, num_pages = len(seen), -(-max(seen) // 64)
    a = torch.randn((heads, tokens, latent), generator=generator)
    b = torch.randn((tokens, heads, rope), generator=generator)
    pages = torch.randn((tokens * num_pages, 64, latent + rope), generator=generator)
    order = torch.randperm(tokens * num_pages, generator=generator)
    tables = order.reshape(tokens, num_pages).int()
    for t, n in enumerate(seen):  # unused positions hold NaN, unused entries no page
        page, rest = divmod(n, 64)
        if page < num_pages:
            pages[tables[t, page], rest:] = float("nan")
            tables[t, page + (rest > 0) :] = 2**30
    return a, b, pages.to(dtype), tables, torch.tensor(seen, dtype=torch.int32)


def check(x: Inputs, got: torch.Tensor, scale: float = SCALE) -> None:
    """Queries are rounded to the pages' type, exactly modelled. With s the sum of |share value|:

    shares, rounded too, lose up to 2^-8 of themselves (2^-11 in f16, and 2^-25 where they are
    subnormal). A score is a chain of D rounded products and off by (D + 4) u |q| . |k| (on tensor
    cores by `dot_bound`), its share by a factor of e^(2 e); exponentials, sums and weighted values
    add less than 2 n u with n = positions + 64, and on tensor cores `dot_bound` of all positions.
    """
    a, b, pages, tables, positions = x
    latent, is_half = a.shape[2], pages.dtype is torch.float16
    for t, seen in enumerate(positions.tolist()):
        if seen == 0:
            assert not got[:, t].any()
            continue
        num_pages = -(-seen // 64)
        rows = pages[tables[t, :num_pages].long()].flatten(0, 1)[:seen].double()
        qa, qb = rounded(a[:, t : t + 1], b[t : t + 1], is_half)
        want = reference.latent_attention(qa, qb, rows, scale)
        queries = torch.cat((qa, qb.transpose(0, 1)), -1)
        scores = queries @ rows.T * scale  # (N, 1, S)
        sizes = scale * (queries.abs() @ rows.T.abs()).amax(-1)
        error = (queries.shape[-1] + 4) * U * sizes + dot_bound(queries.shape[-1] + 16, sizes)
        rounding = 2.0**-11 if is_half else 2.0**-8
        relative = rounding + torch.expm1(2 * error) + 2 * U * (seen + 64)
        relative += dot_bound(seen + 32, 1.0)
        values = rows[:, :latent].abs()
        bound = relative[..., None] * (scores.softmax(-1) @ values) + 2.0**-25 * values.sum(0)
        closeness.assert_close(got[:, t : t + 1], want.numpy(), bound.numpy(), f"token {t}")


def rounded(a: torch.Tensor, b: torch.Tensor, is_half: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a token's queries (N, 1, R), (1, N, P) as the kernel does; f16: over their largest."""
    if not is_half:
        return torch.from_numpy(bfloat16(a.numpy())), torch.from_numpy(bfloat16(b.numpy()))
    most = torch.maximum(a.abs().amax(-1), b.abs().amax(-1).T)[..., None]  # (N, 1, 1)
    most[most == 0] = 1
    turned = most.transpose(0, 1)
    return (a / most).half().double() * most, (b / turned).half().double() * turned


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_sms", [1, 4, 64])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_attention_is_within_the_bound(
    batch: tuple[int, int, int, list[int]],
    num_sms: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "num_multiprocessors", lambda device: num_sms)
    x = inputs(*batch, dtype)
    check(x, latent_attention(*x, SCALE, max_positions=300))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wrong_scales_and_lengths_are_seen(dtype: torch.dtype) -> None:
    x = inputs(16, 32, 8, [97, 40], dtype)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(x, latent_attention(*x, 1.02 * SCALE, max_positions=97))
    a, b, pages, tables, positions = x
    got = latent_attention(a, b, pages, tables, positions - 1, SCALE, max_positions=97)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(x, got)
    got = latent_attention(*x, SCALE, max_positions=96)
    with pytest.raises(AssertionError, match="token 0"):
        check(x, got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    x = inputs(3, 16, 16, [70], dtype)
    a, b, *rest = x
    got = latent_attention(1e4 * a, 1e4 * b, *rest, SCALE, max_positions=70)
    assert torch.isfinite(got).all()


def test_queries_beyond_the_range_of_f16_are_as_exact_as_others() -> None:
    a, b, pages, tables, positions = inputs(5, 32, 8, [70, 3], torch.float16)
    x = (1e6 * a, 1e6 * b, pages / 1024, tables, positions)  # of 1e6 / 1024, f16 is exact
    check(x, latent_attention(*x, 1e-4, max_positions=70), 1e-4)
    for zero in (0.0, 1e-38):
        x = (zero * a, zero * b, pages, tables, positions)
        check(x, latent_attention(*x, SCALE, max_positions=70))


def test_nothing_to_attend_to_gives_zeros() -> None:
    x = inputs(3, 16, 16, [2])
    assert not latent_attention(*x, SCALE, max_positions=0).any()


@pytest.mark.parametrize("seen", [1, 31, 33, 64, 65, 300])
def test_any_number_of_splits_gives_the_same(seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is for the longest token, or for a longer one of a graph."""
    x = inputs(2, 16, 8, [seen, 300])
    for num_sms in (1, 3, 500):
        monkeypatch.setattr(attention, "num_multiprocessors", lambda device, n=num_sms: n)
        check(x, latent_attention(*x, SCALE, max_positions=320))


@pytest.mark.parametrize("positions", [1, 40, 4096, 131072])
@pytest.mark.parametrize("tokens", [1, 16])
def test_plans_fill_the_gpu_as_far_as_there_are_positions(tokens: int, positions: int) -> None:
    plan = plan_attention(tokens, 64, positions, 128)
    assert 64 % plan.block_tokens == 0  # a block lies in one page
    blocks = -(-positions // plan.block_tokens)
    assert 1 <= plan.num_splits <= max(1, blocks // 2)
    assert 4 * tokens * plan.num_splits >= min(2 * 128, 4 * tokens * (blocks // 2))


def test_wrong_arguments_are_refused() -> None:
    a, b, pages, tables, positions = inputs(3, 16, 16, [70])
    for bad in (
        (a.bfloat16(), b, pages, tables, positions),
        (a, b[:, :2].contiguous(), pages, tables, positions),
        (a, b, pages.float(), tables, positions),
        (a, b, pages[:, :32].contiguous(), tables, positions),
        (a, b, pages, tables.long(), positions),
        (a, b, pages, tables, positions[:0]),
    ):
        with pytest.raises(ShapeError, match=r"latent_attention: .* expected"):
            latent_attention(*bad, SCALE, max_positions=70)

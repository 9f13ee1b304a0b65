"""MLA over a paged KV cache, against float64; a token's bits do not depend on its batch."""

import itertools

import pytest
import torch
from attention_cases import BLOCK, DTYPES, SCALE, TILE_SHAPES, Inputs, inputs, paged, stored

from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops, reference
from hybridmoe.kernels.paged_mla import (
    BlockTables,
    KvPages,
    Span,
    latent_attention,
    store_kv,
)

TYPES = ["f32", "f16", "bf16", "int8"]
SHAPES = [  # heads, tokens, latent, rope, positions
    (4, 1, 32, 8, 1),
    (3, 5, 40, 10, 5),
    (64, 1, 64, 16, BLOCK + 1),
    (6, 70, 24, 6, 2 * BLOCK),
    (128, 2, 16, 4, 3 * BLOCK + 7),
    (5, 300, 17, 0, 300),
]


def attention(x: Inputs, type: str = "f32") -> torch.Tensor:
    """Attend from the last tokens of one sequence."""
    a, b, kv = x
    pages, tables = paged([kv], type)
    tokens = a.shape[1]
    table = BlockTables([Span(tokens, len(kv) - tokens, tables[0])])
    return latent_attention(a, b, pages, table, SCALE)


def error_bound(x: Inputs) -> torch.Tensor:
    """Error bound of each result; u = 2^-24.

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


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_within_the_bound(each_isa: str, shape: tuple[int, ...], type: str) -> None:
    a, b, kv = inputs(*shape)
    x = (a, b, stored(kv, type))
    error = (attention((a, b, kv), type) - reference.latent_attention(*x, SCALE)).abs()
    bound = error_bound(x)
    if type == "int8":  # a code on the edge may be rounded either way
        bound = bound + 1e-5
    assert (error <= bound).all(), float((error / bound).max())


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("shape", TILE_SHAPES, ids=str)
def test_prompts_by_matrix_tiles_are_as_exact_as_bfloat16(
    amx: None, shape: tuple[int, ...], type: str, restore_threads: None
) -> None:
    """Queries and weights are rounded to bfloat16: relative errors of u / sqrt(3), u = 2^-9.

    Those of a score's products are independent, so that their squares add up; a weight is off by
    as much as its score, and by its own rounding. The softmax averages, so that this bounds the
    results. A scale that is 5 % off does not pass.
    """
    a, b, kv = inputs(*shape)
    keys = stored(kv, type).double()
    queries = torch.cat((a, b.transpose(0, 1)), -1).double()
    products = torch.einsum("ntd,sd->nts", queries**2, keys**2)
    bound = 2.0**-9 / 3**0.5 * (SCALE * float(products.mean().sqrt()) + 1)
    want = reference.latent_attention(a, b, keys.float(), SCALE)

    def error(got: torch.Tensor) -> float:
        return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())

    out = attention((a, b, kv), type)
    assert error(out) <= bound
    assert error(reference.latent_attention(a, b, keys.float(), 1.05 * SCALE)) > bound
    ops.set_num_threads(3)
    assert torch.equal(attention((a, b, kv), type), out)


def test_few_tokens_keep_their_bits_beside_a_prompt(amx: None) -> None:
    short, prompt = inputs(4, 3, 128, 32, BLOCK + 5), inputs(4, 20, 128, 32, 40)
    pages, tables = paged([short[2], prompt[2]], "bf16")
    spans = BlockTables([Span(3, BLOCK + 2, tables[0]), Span(20, 20, tables[1])])
    a, b = torch.cat((short[0], prompt[0]), 1), torch.cat((short[1], prompt[1]))
    together = latent_attention(a, b, pages, spans, SCALE)
    with isa.forced("avx512"):
        exact = attention(short, "bf16")
    assert torch.equal(together[:, :3], exact)
    assert torch.equal(together[:, 3:], attention(prompt, "bf16"))


@pytest.mark.parametrize("type", TYPES)
def test_pages_keep_what_their_type_can(type: str) -> None:
    kv = inputs(1, 1, 130, 70, 100)[2] * torch.logspace(-3, 3, 100)[:, None]
    pages, tables = paged([kv], type)
    rows = pages.data[tables[0]].flatten(0, 1)[:100]
    if type == "int8":
        scales = rows[:, :16].view(torch.float32).repeat_interleave(64, 1)[:, :200]
        got = rows[:, 16:216].view(torch.int8) * scales
        assert ((got - kv).abs() <= scales * 0.5001).all()
    else:
        got = rows.view(DTYPES[type]).float()
        assert torch.equal(got, stored(kv, type))


def test_every_rounding_to_f16_is_numpys(each_isa: str) -> None:
    """All halves, values between them (ties, too), and beyond: only infinities are infinite."""
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    finite = halves[halves.isfinite()].sort()[0]
    between = torch.cat((finite[1:] + finite[:-1], finite[1:] * 1.25 + finite[:-1] * 0.75)) / 2
    beyond = torch.tensor([65504.0, 65519.0, 65520.0, 1e30, 3e38, float("inf"), 1e-45, 2.0**-25])
    x = torch.cat((halves, between, beyond, -beyond, torch.zeros(1)))
    x = torch.nn.functional.pad(x, (0, -len(x) % 999)).view(-1, 999)  # no multiple of 8 or 16
    want = x.clone()
    want[x.isfinite()] = x[x.isfinite()].clamp(-65504, 65504)
    pages, tables = paged([x], "f16")
    got = pages.data[tables[0]].flatten(0, 1)[: len(x)].view(torch.float16)
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(
        got.nan_to_num(0).view(torch.int16), want.half().nan_to_num(0).view(torch.int16)
    )
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn((300, 40), generator=generator)
    keys[:, 3] *= 2.0**-16  # subnormal halves
    keys[7, 5] = 1e6
    kept = keys.clamp(-65504, 65504).half().float()
    a, b, _ = inputs(4, 2, 32, 8, 300)
    assert torch.equal(attention((a, b, keys), "f16"), attention((a, b, kept), "f32"))


@pytest.mark.parametrize("type", TYPES)
def test_a_token_has_the_same_bits_alone_and_in_a_prompt(each_isa: str, type: str) -> None:
    a, b, kv = inputs(6, 40, 24, 6, BLOCK + 20)
    whole = attention((a, b, kv), type)
    for t in (0, 19, 20, 39):  # around the end of a block, too
        seen = kv[: len(kv) - 39 + t]
        alone = attention((a[:, t : t + 1].contiguous(), b[t : t + 1].contiguous(), seen), type)
        assert torch.equal(alone[:, 0], whole[:, t])


@pytest.mark.parametrize("type", TYPES)
def test_sequences_of_one_call_have_the_bits_of_calls_of_their_own(
    each_isa: str, type: str, restore_threads: None
) -> None:
    lengths = [(1, 1), (3, BLOCK + 2), (1, 2 * BLOCK), (70, 70), (1, 5 * BLOCK + 9), (2, 65)]
    alone = [inputs(6, tokens, 24, 8, positions) for tokens, positions in lengths]
    pages, tables = paged([kv for _, _, kv in alone], type)
    spans = [
        Span(tokens, positions - tokens, table)
        for (tokens, positions), table in zip(lengths, tables, strict=True)
    ]
    a = torch.cat([x[0] for x in alone], 1)
    b = torch.cat([x[1] for x in alone], 0)
    for threads in (1, 3, 16):
        ops.set_num_threads(threads)
        together = latent_attention(a, b, pages, BlockTables(spans), SCALE)
        ends = itertools.accumulate(tokens for tokens, _ in lengths)
        for x, end in zip(alone, ends, strict=True):
            tokens = x[0].shape[1]
            assert torch.equal(together[:, end - tokens : end], attention(x, type))


@pytest.mark.parametrize("positions", [65, BLOCK + 70, 5 * BLOCK])  # few blocks are shared out
def test_threads_and_instruction_sets_do_not_change_the_bits(
    restore_threads: None, positions: int
) -> None:
    x = inputs(16, 3, 200, 8, positions)
    for type in TYPES:
        results = []
        for threads in (1, 2, 16):
            ops.set_num_threads(threads)
            for name in isa.supported():
                if name != "scalar":  # no fused multiply-add
                    with isa.forced(name):
                        results.append(attention(x, type))
        assert all(torch.equal(result, results[0]) for result in results)


def test_what_lies_in_the_future_does_not_matter() -> None:
    a, b, kv = inputs(4, 8, 16, 4, 20)
    changed = kv.clone()
    changed[-1] = 7.0
    before, after = (attention((a, b, keys)) for keys in (kv, changed))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_reaches_the_tokens_that_see_it(type: str, value: float) -> None:
    a, b, kv = inputs(2, 4, 16, 4, 4)
    kv[2, 3] = value
    out = attention((a, b, kv), type)
    assert out[:, 2:].isnan().any(-1).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b, kv = inputs(2, 4, 16, 4, 8)
    for x in ((a, b[:2], kv), (a[0], b, kv), (a, b, kv[:, 1:])):
        with pytest.raises(ShapeError, match="latent_attention"):
            attention(x)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Span(3, 5, [0]), "have 3 tokens, expected 4"),
        (Span(4, 61, [0]), "needs 2 pages, its table has 1"),
        (Span(4, -1, [0]), "4 tokens from -1"),
        (Span(4, 4, [1]), "page 1 of 1"),
        (Span(4, 4, [-1]), "page -1 of 1"),
        (Span(-4, 4, [0]), "-4 tokens from 4"),
    ],
)
def test_tables_that_do_not_fit_are_refused(span: Span, message: str) -> None:
    a, b, kv = inputs(2, 4, 16, 4, 8)
    pages, _ = paged([kv])
    with pytest.raises(ShapeError, match=message):
        latent_attention(a, b, pages, BlockTables([span]), SCALE)
    with pytest.raises(ShapeError, match=message):
        store_kv(kv[:4], pages, BlockTables([span]))


def test_pages_of_another_size_are_refused() -> None:
    for shape, type in (
        ((2, 32, 80), "f32"),
        ((2, 64, 40), "f32"),
        ((2, 64, 80), "f16"),
        ((2, 64, 80), "f8"),
    ):
        with pytest.raises(ShapeError):
            KvPages(torch.zeros(shape, dtype=torch.uint8), type, 20)

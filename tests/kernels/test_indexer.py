"""Selection of positions by index keys, and attention to a selection."""

import itertools

import pytest
import torch
from attention_cases import BLOCK, SCALE, inputs, paged, stored

from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.indexer import select_positions
from hybridmoe.kernels.paged_mla import BlockTables, Span, latent_attention

TYPES = ["f32", "f16", "bf16", "int8"]
SHAPES = [  # heads, dim, tokens, positions, top_k
    (20, 24, 5, BLOCK + 3, 17),
    (32, 128, 9, 2 * BLOCK, 300),
    (64, 128, 3, 700, 1),
    (200, 8, 2, 90, 40),
]


def index_inputs(
    heads: int, dim: int, tokens: int, positions: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(heads + tokens)
    shapes = ((tokens, heads, dim), (tokens, heads), (positions, dim))
    queries, weights, keys = (torch.randn(shape, generator=generator) for shape in shapes)
    return queries, weights, keys


def select(
    queries: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor, top_k: int, type: str = "f32"
) -> torch.Tensor:
    """Select for the last tokens of one sequence."""
    pages, tables = paged([keys], type)
    span = Span(len(queries), len(keys) - len(queries), tables[0])
    return select_positions(queries, weights, pages, BlockTables([span]), top_k)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_greatest_scores_are_selected(each_isa: str, shape: tuple[int, ...], type: str) -> None:
    *sizes, top_k = shape
    queries, weights, keys = index_inputs(*sizes)
    selected = select(queries, weights, keys, top_k, type)
    exact = stored(keys, type).double()
    products = (queries.double() @ exact.T).relu()  # (T, J, S)
    scores = (weights.double()[..., None] * products).sum(1)
    # A score is a chain of J products, each a chain of D: (J + D) u of the sum of their sizes.
    sizes_of_scores = weights.double().abs()[..., None] * (queries.double().abs() @ exact.abs().T)
    bound = (sizes[0] + sizes[1] + 4) * 2.0**-24 * sizes_of_scores.sum(1).max()
    bound += 1e-4 if type == "int8" else 0.0  # a code on the edge may be rounded either way
    num_unseen = len(queries) - 1
    for t, chosen in enumerate(selected.long()):
        seen = len(keys) - num_unseen + t
        assert (chosen.diff() > 0).all() and chosen[0] >= 0 and chosen[-1] < seen
        others = torch.ones(seen, dtype=torch.bool)
        others[chosen] = False
        assert scores[t, chosen].min() >= scores[t, :seen][others].max() - 2 * bound


def test_of_equal_scores_the_earlier_positions_are_selected(each_isa: str) -> None:
    keys = torch.zeros(400, 16)
    keys[[7, 300, 301]] = 1.0
    queries = torch.ones(1, 4, 16)
    for weight, wanted in ((1.0, [0, 1, 2, 3, 7, 300, 301]), (-1.0, [0, 1, 2, 3, 4, 5, 6])):
        weights = torch.full((1, 4), weight)
        assert select(queries, weights, keys, 7)[0].tolist() == wanted


def test_scores_that_are_no_numbers_select_something(each_isa: str) -> None:
    queries, weights, keys = index_inputs(4, 16, 2, 100)
    keys[::3] = float("nan")
    queries[1, 2] = float("inf")
    for chosen in select(queries, weights, keys, 50):
        assert (chosen.diff() > 0).all() and chosen[0] >= 0 and chosen[-1] < 100


def test_a_selection_depends_on_neither_batch_nor_threads(restore_threads: None) -> None:
    lengths = [(1, 90), (3, BLOCK + 30), (70, 100), (2, 40), (1, 3 * BLOCK)]  # tokens, positions
    top_k, every = 40, [index_inputs(20, 32, *length) for length in lengths]
    pages, tables = paged([keys for *_, keys in every], "f16")
    spans = BlockTables(
        [Span(n, s - n, table) for (n, s), table in zip(lengths, tables, strict=True)]
    )
    queries, weights = (torch.cat([x[i] for x in every]) for i in range(2))
    ends = list(itertools.accumulate(n for n, _ in lengths))
    for threads, name in itertools.product((1, 3), isa.supported()):
        if name == "scalar":  # no fused multiply-add
            continue
        ops.set_num_threads(threads)
        with isa.forced(name):
            together = select_positions(queries, weights, pages, spans, top_k)
            for (n, s), x, end in zip(lengths, every, ends, strict=True):
                few = max(0, top_k - (s - n))  # tokens that see all
                alone = torch.cat(
                    [
                        select(
                            x[0][t : t + 1], x[1][t : t + 1], x[2][: s - n + t + 1], top_k, "f16"
                        )
                        for t in range(few, n)
                    ]
                    or [together[:0]]
                )
                assert torch.equal(together[end - n + few : end], alone)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("heads", [24, 128])
def test_attention_to_a_selection_has_the_bits_of_attention_to_its_rows(
    each_isa: str, heads: int, type: str, restore_threads: None
) -> None:
    tokens, positions, top_k = 5, 2 * BLOCK + 9, BLOCK + 40
    a, b, kv = inputs(heads, tokens, 40, 8, positions)
    generator = torch.Generator().manual_seed(5)
    first = positions - tokens + 1
    selected = torch.stack(
        [
            torch.randperm(first + t, generator=generator)[:top_k].sort()[0].int()
            for t in range(tokens)
        ]
    )
    pages, tables = paged([kv], type)
    span = BlockTables([Span(tokens, first - 1, tables[0])])
    results = []
    for threads in (1, 16):
        ops.set_num_threads(threads)
        results.append(latent_attention(a, b, pages, span, SCALE, selected))
    assert torch.equal(*results)
    for t, chosen in enumerate(selected.long()):
        rows, (table,) = paged([kv[chosen]], type)
        one = BlockTables([Span(1, top_k - 1, table)])
        alone = latent_attention(
            a[:, t : t + 1].contiguous(), b[t : t + 1].contiguous(), rows, one, SCALE
        )
        assert torch.equal(results[0][:, t : t + 1], alone)


def test_tokens_that_see_few_positions_attend_to_all() -> None:
    a, b, kv = inputs(6, 50, 24, 8, 50)
    pages, tables = paged([kv])
    span = BlockTables([Span(50, 0, tables[0])])
    undefined = torch.full((50, 30), -1, dtype=torch.int32)
    undefined[30:] = torch.arange(30)
    dense = latent_attention(a, b, pages, span, SCALE)
    sparse = latent_attention(a, b, pages, span, SCALE, undefined)
    assert torch.equal(sparse[:, :30], dense[:, :30])
    assert not torch.equal(sparse[:, 30:], dense[:, 30:])


def test_selections_that_cannot_be_are_refused() -> None:
    a, b, kv = inputs(2, 4, 16, 4, 8)
    pages, tables = paged([kv])
    span = BlockTables([Span(4, 4, tables[0])])
    for chosen, message in (([0, 8], "position 7 attends to 0..8"), ([-1, 2], "attends to -1..2")):
        selected = torch.tensor([[0, 1]] * 3 + [chosen], dtype=torch.int32)
        with pytest.raises(ShapeError, match=message):
            latent_attention(a, b, pages, span, SCALE, selected)
    with pytest.raises(ShapeError, match="selections of 3 tokens of 4"):
        latent_attention(a, b, pages, span, SCALE, selected[:3])
    with pytest.raises(ShapeError, match="latent_attention: selected"):
        latent_attention(a, b, pages, span, SCALE, selected.long())
    queries, weights, keys = index_inputs(4, 16, 4, 8)
    for bad in ((queries[..., :8], weights, keys), (queries, weights[:2], keys)):
        with pytest.raises(ShapeError, match="select_positions"):
            select(*bad, 2)
    with pytest.raises(ShapeError, match="top_k 0"):
        select(queries, weights, keys, 0)

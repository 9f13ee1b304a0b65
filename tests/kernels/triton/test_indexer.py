"""Selection of positions on the GPU, and attention to a selection, beside the CPU's."""

from collections.abc import Sequence

import pytest
import torch

from hybridmoe.errors import ShapeError

pytest.importorskip("triton", reason="needs triton (pip install hybridmoe[cuda])")

from kernel_device import on_device

from hybridmoe.kernels.triton import decode_attention, indexer

select_positions = on_device(indexer.select_positions)
latent_attention = on_device(decode_attention.latent_attention)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(heads: int, dim: int, seen: Sequence[int], dtype: torch.dtype, seed: int = 1) -> Inputs:
    """Make queries, weights, and index keys of small whole numbers, which no type rounds."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    tokens, num_pages = len(seen), -(-max(seen) // 64)
    pages = whole(tokens * num_pages, 64, dim)
    order = torch.randperm(tokens * num_pages, generator=generator)
    tables = order.reshape(tokens, num_pages).int()
    for t, n in enumerate(seen):  # unused positions hold NaN, unused entries no page
        page, rest = divmod(n, 64)
        if page < num_pages:
            pages[tables[t, page], rest:] = float("nan")
            tables[t, page + (rest > 0) :] = 2**30
    queries = whole(tokens, heads, dim)
    queries[..., 0] = 4.0  # the largest of each head: a power of two, by which f16 divides
    positions = torch.tensor(seen, dtype=torch.int32)
    return queries, whole(tokens, heads), pages.to(dtype), tables, positions


def wanted(x: Inputs, t: int, top_k: int) -> list[int]:
    """Positions of a token by exact scores; of equal ones the earlier."""
    queries, weights, pages, tables, positions = x
    seen = int(positions[t])
    keys = pages[tables[t, : -(-seen // 64)].long()].flatten(0, 1)[:seen].double()
    scores = weights[t].double() @ (queries[t].double() @ keys.T).relu()
    return sorted(scores.sort(descending=True, stable=True)[1][:top_k].tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "dim", "seen", "top_k"),
    [
        (4, 16, [70], 64),
        (20, 24, [300, 65, 64, 1], 17),
        (32, 128, [130, 200], 100),
        (5, 40, [1100], 1),
    ],
)
def test_the_greatest_scores_are_selected_of_equal_ones_the_earlier(
    heads: int, dim: int, seen: list[int], top_k: int, dtype: torch.dtype
) -> None:
    x = inputs(heads, dim, seen, dtype)
    selected = select_positions(*x, top_k)
    for t, n in enumerate(seen):
        if n > top_k:  # else it attends to all, and the row is undefined
            assert selected[t].tolist() == wanted(x, t, top_k)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_scores_that_are_no_numbers_select_positions_that_exist() -> None:
    queries, weights, pages, tables, positions = inputs(4, 16, [100, 90], torch.bfloat16)
    pages[tables[0, 0], 3::7] = float("nan")
    queries[1, 2] = float("inf")
    selected = select_positions(queries, weights, pages, tables, positions, 50)
    assert selected.min() >= 0 and (selected < positions[:, None]).all()


@pytest.mark.parametrize(("dtype", "num_sms"), [(torch.float16, 64), (torch.bfloat16, 1)])
def test_attention_to_a_selection_has_the_bits_of_attention_to_its_rows(
    dtype: torch.dtype, num_sms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that see few positions attend to all, whatever their rows hold."""
    monkeypatch.setattr(decode_attention, "num_multiprocessors", lambda device: num_sms)
    heads, latent, rope, top_k, seen = 18, 32, 8, 97, [300, 98, 97, 40]
    generator = torch.Generator().manual_seed(3)
    a = torch.randn((heads, len(seen), latent), generator=generator)
    b = torch.randn((len(seen), heads, rope), generator=generator)
    pages = torch.randn((20, 64, latent + rope), generator=generator).to(dtype)
    tables = torch.randperm(20, generator=generator)[: 4 * 5].reshape(4, 5).int()
    selected = torch.full((len(seen), top_k), 10**9, dtype=torch.int32)
    packed = torch.zeros(8, 64, latent + rope, dtype=dtype)
    for t, n in enumerate(seen):
        rows = pages[tables[t].long()].flatten(0, 1)
        chosen = torch.arange(n)
        if n > top_k:
            chosen = torch.randperm(n, generator=generator)[:top_k].sort()[0]
            selected[t] = chosen.int()
        packed[2 * t : 2 * t + 2].flatten(0, 1)[: len(chosen)] = rows[chosen]
    positions = torch.tensor(seen, dtype=torch.int32)
    got = latent_attention(
        a, b, pages, tables, positions, 0.25, max_positions=320, selected=selected
    )
    own = torch.arange(8, dtype=torch.int32).reshape(4, 2)
    want = latent_attention(
        a, b, packed, own, positions.clamp(max=top_k), 0.25, max_positions=top_k
    )
    assert torch.equal(got, want)


def test_wrong_arguments_are_refused() -> None:
    queries, weights, pages, tables, positions = inputs(4, 16, [70], torch.bfloat16)
    for bad in (
        (queries.double(), weights, pages, tables, positions),
        (queries, weights[:, :2].contiguous(), pages, tables, positions),
        (queries, weights, pages.float(), tables, positions),
        (queries, weights, pages, tables.long(), positions),
        (queries, weights, pages, tables, positions[:0]),
    ):
        with pytest.raises(ShapeError, match=r"select_positions: .* expected"):
            select_positions(*bad, 8)

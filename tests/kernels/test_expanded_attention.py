"""MLA over expanded keys and values, against float64; the tokens of a step that take it."""

import itertools

import numpy as np
import pytest
import torch
from attention_cases import BLOCK, SCALE, paged, stored

from hybridmoe.device.cpu import CpuDevice
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.expanded_attention import expanded_attention
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import BlockTables, Span

R, NOPE, ROPE, V = 48, 32, 16, 16
SHAPES = [(2, 300, 300), (3, 256, 3 * BLOCK + 5), (1, 5, 5), (2, 129, BLOCK + 130)]


class Case:
    """Queries of the last tokens of a sequence, its rows, and the matrices of its heads."""

    def __init__(self, heads: int, tokens: int, positions: int) -> None:
        rng = np.random.default_rng(positions)
        self.tokens = tokens
        draw = rng.standard_normal
        self.q_nope = torch.from_numpy(draw((tokens, heads, NOPE), dtype=np.float32))
        self.q_rope = torch.from_numpy(draw((tokens, heads, ROPE), dtype=np.float32))
        self.kv = torch.from_numpy(draw((positions, R + ROPE), dtype=np.float32))
        self.k_b = QuantMatrix.from_array(draw((heads, R, NOPE), dtype=np.float32) / R**0.5)
        self.v_b = QuantMatrix.from_array(draw((heads, V, R), dtype=np.float32) / R**0.5)

    def run(self, type: str = "f32") -> torch.Tensor:
        pages, tables = paged([self.kv], type)
        table = BlockTables([Span(self.tokens, len(self.kv) - self.tokens, tables[0])])
        out = torch.full((self.tokens, self.k_b.batch, V), torch.nan)
        expanded_attention(self.q_nope, self.q_rope, self.k_b, self.v_b, pages, table, SCALE, out)
        return out

    def exact(self, type: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the results in float64, and bounds of their errors; u = 2^-24.

        An expanded number is a chain of R products, a score one of D = nope + P: together off by
        at most (R + D + 4) u |q| . (|c| |k_b|). The softmax is as in test_attention.py.
        """
        u, rows = 2.0**-24, stored(self.kv, type).double()
        latents, rope = rows.split([R, ROPE], 1)
        heads = self.k_b.batch
        k_b = ops.dequantize(self.k_b).double().view(heads, R, NOPE)
        v_b = ops.dequantize(self.v_b).double().view(heads, V, R)

        def scores(absolute: bool) -> torch.Tensor:
            parts = [self.q_nope.double(), self.q_rope.double(), latents, rope, k_b]
            q, qr, c, cr, w = [x.abs() for x in parts] if absolute else parts
            keys = torch.einsum("sr,hrn->hsn", c, w)
            return torch.einsum("thn,hsn->ths", q, keys) + torch.einsum("thn,sn->ths", qr, cr)

        positions = torch.arange(len(rows))
        seen = positions <= positions[-self.tokens :, None]  # (T, S)
        weights = (SCALE * scores(False)).masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        values = torch.einsum("sr,hvr->hsv", latents, v_b)
        sizes = torch.einsum("sr,hvr->hsv", latents.abs(), v_b.abs())
        off = (R + NOPE + ROPE + 4) * u * SCALE * scores(True).amax(-1)  # (T, H)
        relative = torch.expm1(2 * off) + 2 * u * (BLOCK + len(rows) / BLOCK + 16)
        bound = relative[..., None] * values.abs().amax(1) + (R + 2) * u * sizes.amax(1)
        return torch.einsum("ths,hsv->thv", weights, values), bound


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_within_the_bound(each_isa: str, shape: tuple[int, ...], type: str) -> None:
    case = Case(*shape)
    want, bound = case.exact(type)
    if type == "int8":  # a code on the edge may be rounded either way
        bound = bound + 1e-5
    error = (case.run(type) - want).abs()
    assert (error <= bound).all(), float((error / bound).max())


def test_threads_and_instruction_sets_do_not_change_the_bits(restore_threads: None) -> None:
    case, results = Case(2, 700, 900), []
    for threads in (1, 3, 16):
        ops.set_num_threads(threads)
        for name in isa.supported():
            if name != "scalar":  # no fused multiply-add
                with isa.forced(name):
                    results.append(case.run("f16"))
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_token_has_the_same_bits_in_any_chunk() -> None:
    case, device = Case(2, 3 * BLOCK + 40, 3 * BLOCK + 40), CpuDevice()
    pages, tables = paged([case.kv], "f32")

    def attend(start: int, end: int, expanded_end: int) -> torch.Tensor:
        num_expanded = max(0, min(end, expanded_end) - start)
        table = BlockTables([Span(end - start, start, tables[0], num_expanded)])
        queries = case.q_nope[start:end], case.q_rope[start:end]
        return device.attend(*queries, case.k_b, case.v_b, pages, table, SCALE)

    for expanded_end in (0, 300, case.tokens):
        whole = attend(0, case.tokens, expanded_end)
        assert torch.equal(whole[:expanded_end], case.run()[:expanded_end])
        cuts = [0, 1, BLOCK - 1, 299, 300, 301, 2 * BLOCK + 130, 3 * BLOCK + 1, case.tokens]
        chunks = [attend(*cut, expanded_end) for cut in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(chunks), whole)
    assert not torch.equal(attend(0, 300, 0), whole[:300])
    torch.testing.assert_close(attend(0, 300, 0), whole[:300], rtol=1e-4, atol=1e-5)


def test_sequences_keep_their_bits_beside_others() -> None:
    long, short = Case(2, BLOCK + 9, 2 * BLOCK + 9), Case(2, 3, 70)
    pages, tables = paged([long.kv, short.kv])
    short.k_b, short.v_b = long.k_b, long.v_b
    cases = [long, short, long]
    spans = [Span(c.tokens, len(c.kv) - c.tokens, tables[c is short], c.tokens // 2) for c in cases]

    def attend(some: list[int]) -> torch.Tensor:
        nope = torch.cat([cases[i].q_nope for i in some])
        rope = torch.cat([cases[i].q_rope for i in some])
        table = BlockTables([spans[i] for i in some])
        return CpuDevice().attend(nope, rope, long.k_b, long.v_b, pages, table, SCALE)

    alone = torch.cat([attend([i]) for i in range(3)])
    assert torch.equal(attend([0, 1, 2]), alone)


def test_parts_are_the_tokens_in_order() -> None:
    spans = [Span(1, 600, range(10)), Span(700, 200, range(16), 57), Span(256, 0, range(8), 256)]
    parts = BlockTables(spans).parts()
    assert [(p.first, p.tables.num_tokens, p.is_expanded) for p in parts] == [
        (0, 1, False),
        (1, 57, True),
        (58, 643, False),
        (701, 256, True),
    ]
    for count in (0, 700):
        tables = BlockTables([Span(700, 200, range(16), count)])
        assert tables.parts() == [(0, tables, count > 0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_reaches_the_tokens_that_see_it(value: float) -> None:
    case = Case(2, 300, 300)
    case.kv[270, 3] = value
    out = case.run()
    assert out[270:].isnan().any(-1).all() and out[:256].isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    for name, sizes in (("k_b", (2, R, NOPE + 8)), ("v_b", (2, V, R - 16)), ("v_b", (3, V, R))):
        case = Case(2, 20, 20)
        setattr(case, name, QuantMatrix.from_array(np.zeros(sizes, np.float32)))
        with pytest.raises(ShapeError, match="expanded_attention"):
            case.run()

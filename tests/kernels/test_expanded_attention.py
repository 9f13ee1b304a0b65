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
        """Compute the results in float64, and bounds of their errors.

        Numbers of a latent, a column of weights, a query and a key are rounded to codes of 31 bits
        for two factors and a sum; those of a value to a power of two, at most 1/1024 of the
        greatest; weights to 1/4096 of the greatest of a block, with their value's scale. 2^-16: e^x
        and float32.
        """
        rows, heads = stored(self.kv, type).double(), self.k_b.batch
        latents, rope = rows.split([R, ROPE], 1)
        k_b = ops.dequantize(self.k_b).double().view(heads, R, NOPE)
        v_b = ops.dequantize(self.v_b).double().view(heads, V, R).transpose(1, 2)
        c, c_off = latents[:, None], half_code(latents, 1, R)[:, None]  # (S, 1, R), (S, 1, 1)

        def expand(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Numbers of all heads (S, H, n), and bounds of their errors."""
            off = c_off * (w.abs() + half_code(w, 1, R)).sum(1)
            off = off + (c.abs().sum(-1, keepdim=True) * half_code(w, 1, R).squeeze(1))
            return torch.einsum("sr,hrn->shn", latents, w), off + 2.0**-20

        (nope, nope_off), (values, values_off) = expand(k_b), expand(v_b)
        q = torch.cat([self.q_nope, self.q_rope], 2).double()
        shared = rope[:, None].expand(-1, heads, -1)
        k = torch.cat([nope, shared], 2)
        k_off = torch.cat([nope_off, torch.zeros_like(shared)], 2)
        k_off = k_off + half_code(k.abs() + k_off, 2, NOPE + ROPE)
        q_off = half_code(q, 2, NOPE + ROPE).expand_as(q)
        positions = torch.arange(len(rows))
        seen = (positions <= positions[-self.tokens :, None])[:, None]  # (T, 1, S)
        scores = SCALE * torch.einsum("thd,shd->ths", q, k)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        off = SCALE * torch.einsum("thd,shd->ths", q.abs() + q_off, k_off)
        off = off + SCALE * torch.einsum("thd,shd->ths", q_off, k.abs())
        relative = torch.expm1(2 * (off * seen).amax(-1, keepdim=True) + 2.0**-16)  # (T, H, 1)
        greatest = values.abs().amax(-1).T + values_off.amax(-1).T  # (H, S)
        rounded = (weights * greatest).split(BLOCK, 2)
        rounding = sum(part.shape[2] * part.amax(2, keepdim=True) for part in rounded)
        bound = relative * values.abs().amax(0) + (1 + relative) * rounding / 4096
        bound = bound + values_off.amax(0) + greatest.amax(1)[:, None] / 1024
        return torch.einsum("ths,shv->thv", weights, values), bound


def half_code(x: torch.Tensor, dim: int, depth: int) -> torch.Tensor:
    """Half of a code's step, by the greatest magnitude along a dimension."""
    return x.abs().amax(dim, keepdim=True) / (2 * int((2**31 / depth) ** 0.5))


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_within_the_bound(each_isa: str, shape: tuple[int, ...], type: str) -> None:
    case = Case(*shape)
    want, bound = case.exact(type)
    if type == "int8":  # a code on the edge may be rounded either way
        bound = bound + 1e-5
    error = (case.run(type) - want).abs()
    assert (error <= bound).all(), float((error / bound).max())
    assert error.norm() <= 1.5e-3 * want.norm()


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
    difference = (attend(0, 300, 0) - whole[:300]).norm()
    assert 0 < difference <= 1.5e-3 * whole[:300].norm()


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

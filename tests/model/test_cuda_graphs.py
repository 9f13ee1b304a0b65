"""CUDA graphs of decode steps, on a device that captures by calling the function again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.device.interface import Tables
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.model.cuda_graphs import DecodeGraphs
from hybridmoe.model.router import Routing


class Device(CpuDevice):
    """CPU device that runs work once at capture, and again at every replay."""

    num_captures = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        function()
        function()
        return function


def run(x: Tensor, cos_sin: Tensor, tables: Tables, trace: list[Routing]) -> Tensor:
    assert isinstance(tables, CudaBlockTables)
    trace.append((tables.positions[:, None], cos_sin.sum(1, keepdim=True)))
    return x.add_(cos_sin.sum(1, keepdim=True)).mul_(tables.positions[:, None])


def some_spans(num_tokens: int, num_pages: int, rng: torch.Generator) -> list[Span]:
    return [
        Span(1, (num_pages - 1) * PAGE_TOKENS + int(torch.randint(64, (), generator=rng)), pages)
        for pages in [list(range(7, 7 + num_pages))] * num_tokens
    ]


def test_replays_equal_runs() -> None:
    device = Device()
    graphs = DecodeGraphs(device, run, head=lambda states: 2 * states)
    rng = torch.Generator().manual_seed(1)
    for num_tokens, num_pages in [(1, 4), (1, 9), (3, 4), (1, 17), (3, 4), (1, 4)]:
        x = torch.rand((num_tokens, 5), generator=rng)
        cos_sin = torch.rand((num_tokens, 2), generator=rng)
        spans = some_spans(num_tokens, num_pages, rng)
        wanted_trace: list[Routing] = []
        tables = CudaBlockTables.of(spans, torch.device("cpu"))
        wanted = run(x.clone(), cos_sin, tables, wanted_trace)
        before, trace = x.clone(), list[Routing]()
        outputs = graphs.forward(x, cos_sin, spans, trace)
        assert torch.equal(outputs.states, wanted)
        assert outputs.logits is not None and torch.equal(outputs.logits, 2 * wanted)
        assert torch.equal(x, before)
        assert len(trace) == 1
        for got, want in zip(trace[0], wanted_trace[0], strict=True):
            assert torch.equal(got, want)
        assert torch.equal(graphs.forward(x, cos_sin, spans, None).states, wanted)
    assert device.num_captures == 3


def test_a_graph_captured_ahead_is_the_one_replayed() -> None:
    device = Device()
    graphs = DecodeGraphs(device, run)
    x, cos_sin = torch.ones(1, 5), torch.ones(1, 2)
    graphs.capture(x, cos_sin, [Span(1, 0, [0])])
    assert device.num_captures == 1
    spans = [Span(1, 16 * PAGE_TOKENS - 1, list(range(16)))]  # the last of its positions
    outputs = graphs.forward(x, cos_sin, spans, None)
    assert torch.equal(outputs.states, torch.full((1, 5), 3.0 * 16 * PAGE_TOKENS))
    assert device.num_captures == 1
    graphs.forward(x, cos_sin, [Span(1, 16 * PAGE_TOKENS, list(range(17)))], None)
    assert device.num_captures == 2


@pytest.mark.parametrize("num_pages", [1, 16, 17, 40])
def test_packed_tables_are_those_of_any_step(num_pages: int) -> None:
    rng = torch.Generator().manual_seed(num_pages)
    spans = [*some_spans(2, num_pages, rng), Span(1, 70, [5, 2, 9]), Span(1, 0, range(3, 9))]
    num_pages = CudaBlockTables.padded_pages(spans)
    buffer = torch.full((CudaBlockTables.num_ints(4, 4, num_pages),), -1, dtype=torch.int32)
    CudaBlockTables.pack_decode(spans, num_pages, buffer.numpy())
    want = CudaBlockTables.of(spans, torch.device("cpu"))
    got = CudaBlockTables(buffer, 4, 4, num_pages)
    assert got.num_pages == want.num_pages
    for name in ("slots", "rows", "positions", "tables"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name

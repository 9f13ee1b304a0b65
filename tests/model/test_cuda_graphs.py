"""CUDA graphs of decode steps, on a device that captures by calling the function again."""

from collections.abc import Callable

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


def some_tables(num_tokens: int, num_pages: int, rng: torch.Generator) -> CudaBlockTables:
    spans = [
        Span(1, (num_pages - 1) * PAGE_TOKENS + int(torch.randint(64, (), generator=rng)), pages)
        for pages in [list(range(num_pages))] * num_tokens
    ]
    return CudaBlockTables.of(spans, torch.device("cpu"))


def test_replays_equal_runs() -> None:
    device = Device()
    graphs = DecodeGraphs(device, run)
    rng = torch.Generator().manual_seed(1)
    for num_tokens, num_pages in [(1, 4), (1, 4), (3, 4), (1, 8), (3, 4), (1, 4)]:
        x = torch.rand((num_tokens, 5), generator=rng)
        cos_sin = torch.rand((num_tokens, 2), generator=rng)
        tables = some_tables(num_tokens, num_pages, rng)
        wanted_trace: list[Routing] = []
        wanted = run(x.clone(), cos_sin, tables, wanted_trace)
        before, trace = x.clone(), list[Routing]()
        assert torch.equal(graphs.forward(x, cos_sin, tables, trace), wanted)
        assert torch.equal(x, before)
        assert len(trace) == 1
        for got, want in zip(trace[0], wanted_trace[0], strict=True):
            assert torch.equal(got, want)
        assert torch.equal(graphs.forward(x, cos_sin, tables, None), wanted)
    assert device.num_captures == 3

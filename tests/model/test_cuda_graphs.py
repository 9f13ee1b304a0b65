"""Graphs of decode steps, on a device whose captures are the function itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridmoe.device.cpu import CpuDevice
from hybridmoe.model.cuda_graphs import DecodeGraphs
from hybridmoe.model.router import Routing


class Table:
    def __init__(self, num_pages: int, positions: Tensor) -> None:
        self.num_pages, self.positions = num_pages, positions

    def clone(self) -> "Table":
        return Table(self.num_pages, self.positions.clone())

    def copy_(self, other: "Table") -> None:
        self.positions.copy_(other.positions)


class Device(CpuDevice):
    """As a card: work is done once while it is captured, and again by every replay."""

    num_captures = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        function()
        function()
        return function


def run(x: Tensor, turns: Tensor, table: Table, trace: list[Routing]) -> Tensor:
    trace.append((table.positions.int()[:, None], turns.sum(1, keepdim=True)))
    return x.add_(turns.sum(1, keepdim=True)).mul_(table.positions[:, None])


def test_replays_are_what_the_run_would_have_done() -> None:
    device = Device()
    graphs = DecodeGraphs(device, run)
    rng = torch.Generator().manual_seed(1)
    for num_tokens, num_pages in [(1, 4), (1, 4), (3, 4), (1, 8), (3, 4), (1, 4)]:
        x = torch.rand((num_tokens, 5), generator=rng)
        turns = torch.rand((num_tokens, 2), generator=rng)
        table = Table(num_pages, torch.rand(num_tokens, generator=rng) * 100)
        wanted_trace: list[Routing] = []
        wanted = run(x.clone(), turns, table, wanted_trace)
        before, trace = x.clone(), list[Routing]()
        assert torch.equal(graphs.forward(x, turns, table, trace), wanted)
        assert torch.equal(x, before)
        assert len(trace) == 1
        for got, want in zip(trace[0], wanted_trace[0], strict=True):
            assert torch.equal(got, want)
        assert torch.equal(graphs.forward(x, turns, table, None), wanted)
    assert device.num_captures == 3

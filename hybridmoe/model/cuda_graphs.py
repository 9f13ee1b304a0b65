"""Decode steps as graphs: captured once for each size, then replayed by one call.

A graph repeats the same kernels on the same memory, so that a step's inputs are copied to where it
was captured. Kernels depend on how many tokens there are and, by how attention is shared out, on
how many pages the longest sequence has, for which tables are padded to powers of two.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hybridmoe.device.interface import Device
from hybridmoe.model.router import Routing

__all__ = ["DecodeGraphs"]

Run = Callable[[Tensor, Tensor, Any, list[Routing]], Tensor]  # x, turns, table, trace -> states


class DecodeGraphs:
    """The graphs of one model over one cache's pages."""

    def __init__(self, device: Device, run: Run) -> None:
        """run: queues a step's work and does not wait for it."""
        self._device = device
        self._run = run
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def forward(self, x: Tensor, turns: Tensor, table: Any, trace: list[Routing] | None) -> Tensor:
        """A step's final states (T, H), as `run` has them; valid until the next step."""
        key = (len(x), table.num_pages)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _Graph(self._device, self._run, x, turns, table)
        states = graph.replay(x, turns, table)
        if trace is not None:
            trace += graph.trace
        return states


class _Graph:
    def __init__(self, device: Device, run: Run, x: Tensor, turns: Tensor, table: Any) -> None:
        self._x, self._turns, self._table = x.clone(), turns.clone(), table.clone()
        self._run = run
        self.trace: list[Routing] = []
        self._states = self._x
        self._repeat = device.capture(self._record)

    def replay(self, x: Tensor, turns: Tensor, table: Any) -> Tensor:
        self._x.copy_(x)  # the step before has added to it
        self._turns.copy_(turns)
        self._table.copy_(table)
        self._repeat()
        return self._states

    def _record(self) -> None:
        self.trace.clear()
        self._states = self._run(self._x, self._turns, self._table, self.trace)

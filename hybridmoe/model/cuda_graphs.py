"""Decode steps as graphs: captured once for each size, then replayed by one call.

A graph repeats the same kernels on the same memory, so that a step's inputs are copied to where it
was captured. Kernels depend on how many tokens there are and, by how attention is shared out, on
how many pages the longest sequence has, for which tables are padded to powers of two.
"""

from collections.abc import Callable

from torch import Tensor

from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.device.interface import Device, Tables
from hybridmoe.model.router import Routing

__all__ = ["DecodeGraphs"]

# (x, cos_sin, tables, trace) -> states
Run = Callable[[Tensor, Tensor, Tables, list[Routing]], Tensor]


class DecodeGraphs:
    """The graphs of one model over one cache's pages."""

    def __init__(self, device: Device, run: Run) -> None:
        """run: queues a step's work and does not wait for it."""
        self._device = device
        self._run = run
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def forward(
        self, x: Tensor, cos_sin: Tensor, tables: Tables, trace: list[Routing] | None
    ) -> Tensor:
        """Compute a step's final states (T, H), as `run` does; valid until the next step."""
        assert isinstance(tables, CudaBlockTables), type(tables)
        key = (len(x), tables.num_pages)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _Graph(self._device, self._run, x, cos_sin, tables)
        states = graph.replay(x, cos_sin, tables)
        if trace is not None:
            trace += graph.trace
        return states


class _Graph:
    def __init__(
        self, device: Device, run: Run, x: Tensor, cos_sin: Tensor, tables: CudaBlockTables
    ) -> None:
        self._x, self._cos_sin, self._tables = x.clone(), cos_sin.clone(), tables.clone()
        self._run = run
        self.trace: list[Routing] = []
        self._states = self._x
        self._repeat = device.capture(self._record)

    def replay(self, x: Tensor, cos_sin: Tensor, tables: CudaBlockTables) -> Tensor:
        self._x.copy_(x)  # the step before has added to it
        self._cos_sin.copy_(cos_sin)
        self._tables.copy_(tables)
        self._repeat()
        return self._states

    def _record(self) -> None:
        self.trace.clear()
        self._states = self._run(self._x, self._cos_sin, self._tables, self.trace)

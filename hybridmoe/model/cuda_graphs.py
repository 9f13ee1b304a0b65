"""Decode steps as CUDA graphs: captured once for each size, then replayed by one call.

A graph repeats the same kernels on the same memory: a step's inputs are copied to the memory of the
captured one. Kernels depend on the number of tokens and, by the split of attention, on the pages of
the longest sequence, so block tables are padded to powers of two.
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
    """CUDA graphs of a model's decode steps over one KV cache, by size."""

    def __init__(
        self, device: Device, run: Run, started: Callable[[], None] = lambda: None
    ) -> None:
        """run: queues the work of a step, and does not wait for it.

        started: does the host's part of a graph that has been started.
        """
        self._device = device
        self._run, self._started = run, started
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
        self._started()
        if trace is not None:
            trace += graph.trace
        return states


class _Graph:
    """CUDA graph of one size, with its own copies of the inputs."""

    def __init__(
        self, device: Device, run: Run, x: Tensor, cos_sin: Tensor, tables: CudaBlockTables
    ) -> None:
        self._x, self._cos_sin, self._tables = x.clone(), cos_sin.clone(), tables.clone()
        self._run = run
        self.trace: list[Routing] = []
        self._states = self._x
        self._repeat = device.capture(self._record)

    def replay(self, x: Tensor, cos_sin: Tensor, tables: CudaBlockTables) -> Tensor:
        self._x.copy_(x)  # the last replay has added to it
        self._cos_sin.copy_(cos_sin)
        self._tables.copy_(tables)
        self._repeat()
        return self._states

    def _record(self) -> None:
        self.trace.clear()
        self._states = self._run(self._x, self._cos_sin, self._tables, self.trace)

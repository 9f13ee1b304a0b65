"""Decode steps as CUDA graphs: captured once for each size, then replayed by one call.

A graph repeats the same kernels on the same memory. It begins with one copy of a step's inputs from
the host, and a model's last graph ends with a copy of the logits to it. Kernels depend on the
number of tokens and, by the split of attention, on the pages of the longest sequence, so block
tables are padded to powers of two, at least 16 pages.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.device.interface import Device, Tables
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.router import Routing

__all__ = ["DecodeGraphs", "Outputs"]

# (x, cos_sin, tables, trace) -> states
Run = Callable[[Tensor, Tensor, Tables, list[Routing]], Tensor]
_ALIGNED = 32  # numbers of 4 bytes between which a part of the inputs begins


class Outputs(NamedTuple):
    """Results of a step, still being computed; valid until the next step."""

    states: Tensor  # (T, H), on the device
    logits: Tensor | None  # (T, V), on the host


class DecodeGraphs:
    """CUDA graphs of a model's decode steps over one KV cache, by size."""

    def __init__(
        self,
        device: Device,
        run: Run,
        started: Callable[[], None] = lambda: None,
        head: Callable[[Tensor], Tensor] | None = None,
        trial: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """run: queues the work of a step, and does not wait for it.

        started: does the host's part of a graph that has been started. trial: context of a capture,
        before which the work may be run without need. head: maps states to logits
        in the same way; None = leave them out.
        """
        self._device = device
        self._run, self._started, self._head, self._trial = run, started, head, trial
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._logits: dict[int, Tensor] = {}  # on the host, by the number of tokens

    def forward(
        self, x: Tensor, cos_sin: Tensor, spans: Sequence[Span], trace: list[Routing] | None
    ) -> Outputs:
        """Compute a step of one token a sequence.

        x: (T, H), on the host or any device. cos_sin: (T, R), on the host. Errors: those of `run`.
        """
        graph = self._graph_for(x, cos_sin, spans)
        graph.inputs.fill(x, cos_sin, spans)
        graph.repeat()
        self._started()
        if trace is not None:
            trace += graph.trace
        return graph.outputs

    def capture(self, x: Tensor, cos_sin: Tensor, spans: Sequence[Span]) -> Outputs:
        """Capture the graph of a step like this, whose outputs mean nothing yet."""
        return self._graph_for(x, cos_sin, spans).outputs

    def _graph_for(self, x: Tensor, cos_sin: Tensor, spans: Sequence[Span]) -> "_Graph":
        num_pages = CudaBlockTables.padded_pages(spans)
        key = (len(x), num_pages)
        graph = self._graphs.get(key)
        if graph is None:
            graph = _Graph(self._device, x, cos_sin, num_pages)
            graph.inputs.fill(x, cos_sin, spans)
            with self._trial():
                graph.capture(self._run, self._head, self._logits)
            self._graphs[key] = graph
        return graph


class _Inputs:
    """Inputs of a graph, side by side in memory of the host, and copied from there in one piece.

    States of another device are copied from it, before the graph starts.
    """

    def __init__(self, device: Device, x: Tensor, cos_sin: Tensor, num_pages: int) -> None:
        self._num_tokens, self._num_pages = len(x), num_pages
        counts = [
            CudaBlockTables.num_ints(len(x), len(x), num_pages), cos_sin.numel(), x.numel()
        ]  # fmt: skip
        sizes = [-(-count // _ALIGNED) * _ALIGNED for count in counts]
        self._is_x_on_host = x.is_cpu
        self._copied = sum(sizes if self._is_x_on_host else sizes[:2])
        self._host = device.host_bytes(4 * sum(sizes)).view(torch.int32)
        self._there = device.empty_bytes(4 * sum(sizes)).view(torch.int32)
        tables, self._host_cos_sin, self._host_x = self._parts(self._host, counts, sizes, x)
        self._host_tables = tables.numpy()
        tables, self.cos_sin, self.x = self._parts(self._there, counts, sizes, x)
        self.tables = CudaBlockTables(tables, len(x), len(x), num_pages)

    @staticmethod
    def _parts(
        memory: Tensor, counts: Sequence[int], sizes: list[int], x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """View tables, cos_sin (T, R) and x (T, H) in either memory."""
        tables, cos_sin, states = (
            part[:count] for part, count in zip(torch.split(memory, sizes), counts, strict=True)
        )
        tokens = len(x)
        return (
            tables,
            cos_sin.view(torch.float32).view(tokens, -1),
            states.view(torch.float32).view(tokens, -1),
        )

    def fill(self, x: Tensor, cos_sin: Tensor, spans: Sequence[Span]) -> None:
        """Write a step's inputs, once the last step has ended."""
        CudaBlockTables.pack_decode(spans, self._num_pages, self._host_tables)
        self._host_cos_sin.copy_(cos_sin)
        (self._host_x if self._is_x_on_host else self.x).copy_(x)

    def copy(self) -> None:
        """Queue the copy to the device."""
        self._there[: self._copied].copy_(self._host[: self._copied], non_blocking=True)


class _Graph:
    """CUDA graph of one size, with its own inputs."""

    def __init__(self, device: Device, x: Tensor, cos_sin: Tensor, num_pages: int) -> None:
        self._device = device
        self.inputs = _Inputs(device, x, cos_sin, num_pages)
        self.trace: list[Routing] = []
        self.outputs = Outputs(self.inputs.x, None)
        self.repeat: Callable[[], None] = lambda: None

    def capture(
        self, run: Run, head: Callable[[Tensor], Tensor] | None, logits: dict[int, Tensor]
    ) -> None:
        """Capture a step. logits: memory of the host, shared by graphs of as many tokens."""

        def record() -> None:
            self.trace.clear()
            inputs = self.inputs
            inputs.copy()
            states = run(inputs.x, inputs.cos_sin, inputs.tables, self.trace)
            on_host: Tensor | None = None
            if head is not None:
                computed = head(states)
                if len(states) not in logits:
                    host = self._device.host_bytes(4 * computed.numel()).view(torch.float32)
                    logits[len(states)] = host.view(computed.shape)
                on_host = logits[len(states)]
                on_host.copy_(computed, non_blocking=True)
            self.outputs = Outputs(states, on_host)

        self.repeat = self._device.capture(record)

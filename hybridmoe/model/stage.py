"""Contiguous layers of a model on one device. States cross to the next device once.

A model on one device is one stage; on several GPUs it is a pipeline of as many, run in order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, Protocol

from torch import Tensor

from hybridmoe.device.interface import Device, Pages, Tables
from hybridmoe.device.pending import Pending
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.cuda_graphs import DecodeGraphs
from hybridmoe.model.router import Routing

__all__ = ["Layer", "Positions", "Stage", "stages_of"]


class Layer(Protocol):
    """One layer; `model.decoder` has it."""

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        pages: Pages,
        tables: Tables,
        cos_sin: Tensor,
        trace: list[Routing] | None,
        deferred: Pending | None,
    ) -> tuple[Tensor, Pending | None]: ...


class Positions(NamedTuple):
    """Where a step's tokens are, on the device of one stage."""

    cos_sin: Tensor  # (T, rope)
    tables: Tables


class Stage:
    """Layers `first` and following on one device, and their decode steps as CUDA graphs."""

    def __init__(self, device: Device, first: int, layers: Sequence[Layer]) -> None:
        self.device = device
        self._layers = layers
        self._range = slice(first, first + len(layers))
        self._graphs: DecodeGraphs | None = None

    def use_graphs(self, pages: Sequence[Pages], replayed: Callable[[range], None]) -> None:
        """Prepare graphs over these pages, of all layers of the model.

        replayed: told the layers of a graph that has started, as `ExpertBackend.replayed` is.
        """
        started = partial(replayed, range(self._range.start, self._range.stop))
        self._graphs = DecodeGraphs(self.device, partial(self._run, pages[self._range]), started)

    def positions(self, cos_sin: Tensor, spans: Sequence[Span]) -> Positions:
        """Copy a step's positions to the device."""
        return Positions(self.device.upload(cos_sin), self.device.tables(spans))

    def forward(
        self,
        x: Tensor,
        pages: Sequence[Pages],
        positions: Positions,
        trace: list[Routing] | None,
        *,
        with_graphs: bool,
    ) -> Tensor:
        """Map the states (T, H) of a step, on any device, to those behind the last layer, here.

        pages: of all layers of the model. with_graphs: by the graphs over them.
        """
        with self.device.active():
            x = self.device.upload(x)
            if with_graphs and self._graphs is not None:
                return self._graphs.forward(x, *positions, trace)
            return self._run(pages[self._range], x, *positions, trace)

    def _run(
        self,
        pages: Sequence[Pages],
        x: Tensor,
        cos_sin: Tensor,
        tables: Tables,
        trace: list[Routing] | None,
    ) -> Tensor:
        """Run all layers. Only queues work, so that a CUDA graph can capture it."""
        residual: Tensor | None = None
        deferred: Pending | None = None
        for layer, layer_pages in zip(self._layers, pages, strict=True):
            residual, deferred = layer.forward(
                x, residual, layer_pages, tables, cos_sin, trace, deferred
            )
        if residual is not None:
            x = x.add_(residual)
        return x if deferred is None else x.add_(deferred.result())


def stages_of(devices: Sequence[Device], layers: Sequence[Layer]) -> list[Stage]:
    """Group consecutive layers of one device."""
    stages, first = [], 0
    for _, group in groupby(devices, key=id):
        same = list(group)
        stages.append(Stage(same[0], first, layers[first : first + len(same)]))
        first += len(same)
    return stages

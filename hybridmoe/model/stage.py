"""Contiguous layers of a model on one device. States cross to the next device once.

A model on one device is one stage; on several GPUs it is a pipeline of as many, run in order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from typing import cast

from torch import Tensor

from hybridmoe.device.interface import Device, Pages, Tables
from hybridmoe.kernels.fused_layer import FusedLayers, takes_few_tokens
from hybridmoe.kernels.paged_mla import KvPages, Span
from hybridmoe.model.cuda_graphs import DecodeGraphs, Outputs
from hybridmoe.model.layer import Layer
from hybridmoe.model.router import Routing

__all__ = ["OnLayer", "Stage", "stages_of"]

OnLayer = Callable[[int], None]  # gets the number of layers that a step has run


class Stage:
    """Layers of a model from `first` on, on one device, with their decode steps as CUDA graphs."""

    def __init__(self, device: Device, first: int, layers: Sequence[Layer]) -> None:
        self.device = device
        self._layers = layers
        self._range = slice(first, first + len(layers))
        self._graphs: DecodeGraphs | None = None
        self._layers_as_one: FusedLayers | None = None

    def use_graphs(
        self,
        pages: Sequence[Pages],
        replayed: Callable[[range], None],
        head: Callable[[Tensor], Tensor] | None,
        trial: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Prepare graphs over these pages, of all layers of the model.

        replayed: told the layers of a graph that has started, as `ExpertBackend.replayed` is.
        trial: context of a capture, as `ExpertBackend.trial`. head: of the last stage, maps states
        to logits.
        """
        started = partial(replayed, range(self._range.start, self._range.stop))
        run = partial(self._run, pages[self._range])
        self._graphs = DecodeGraphs(self.device, run, started, head, trial)

    def capture(self, x: Tensor, cos_sin: Tensor, spans: Sequence[Span]) -> Outputs:
        """Capture the graph of a step like this, before it is wanted; see `forward`."""
        assert self._graphs is not None, "use_graphs comes first"
        with self.device.active():
            return self._graphs.capture(x, cos_sin, spans)

    def forward(
        self,
        x: Tensor,
        pages: Sequence[Pages],
        cos_sin: Tensor,
        spans: Sequence[Span],
        trace: list[Routing] | None,
        *,
        with_graphs: bool,
        on_layer: OnLayer | None = None,
    ) -> Outputs:
        """Map the states (T, H) of a step, on any device, to those behind the last layer, here.

        pages: of all layers of the model. cos_sin: (T, R), on the host. with_graphs: by the graphs
        over the pages. on_layer: called after each layer, except of a graph.
        """
        with self.device.active():
            if with_graphs and self._graphs is not None:
                return self._graphs.forward(x, cos_sin, spans, trace)
            tables = self.device.tables(spans)
            x, cos_sin = self.device.upload(x), self.device.upload(cos_sin)
            fused = self.fused() if on_layer is None else None
            if fused is not None and takes_few_tokens(tables):
                own = cast(Sequence[KvPages], pages[self._range])
                fused.forward(x, own, tables, cos_sin, trace)
                return Outputs(x, None)
            states = self._run(pages[self._range], x, cos_sin, tables, trace, on_layer)
            return Outputs(states, None)

    def _run(
        self,
        pages: Sequence[Pages],
        x: Tensor,
        cos_sin: Tensor,
        tables: Tables,
        trace: list[Routing] | None,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Run all layers. Only queues work, so that a CUDA graph can capture it."""
        residual: Tensor | None = None
        for i, (layer, layer_pages) in enumerate(zip(self._layers, pages, strict=True), 1):
            residual = layer.forward(x, residual, layer_pages, tables, cos_sin, trace)
            if on_layer is not None:
                on_layer(self._range.start + i)
        return x if residual is None else x.add_(residual)

    def fused(self) -> FusedLayers | None:
        """Return all layers as one native call, if none needs Python."""
        halves = [halves for layer in self._layers if (halves := layer.fused) is not None]
        if not halves or len(halves) < len(self._layers):
            return None
        if self._layers_as_one is None:
            self._layers_as_one = FusedLayers(halves)
        return self._layers_as_one


def stages_of(devices: Sequence[Device], layers: Sequence[Layer]) -> list[Stage]:
    """Group consecutive layers of one device."""
    stages, first = [], 0
    for _, group in groupby(devices, key=id):
        same = list(group)
        stages.append(Stage(same[0], first, layers[first : first + len(same)]))
        first += len(same)
    return stages

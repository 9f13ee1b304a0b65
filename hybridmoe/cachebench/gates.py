"""Early gates: each layer's router applied to the hidden states of earlier layers."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.router import Router
from hybridmoe.model.weights import Weights

__all__ = ["HORIZONS", "Gates"]

# Layers between the states and the router. 0 is the control: a layer's own states must give the
# experts that were really chosen.
HORIZONS = (0, 1, 2, 3, 4)


class _Gate(NamedTuple):
    norm: RmsNorm
    router: Router


class Gates:
    """Predictions for one decoded token: 2 * top_k experts of each layer, from each horizon."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        """Bind the file's routers. Errors: GGUFError."""
        c, weights = config, Weights(file)
        self._config = replace(c, top_k=min(2 * c.top_k, c.reachable_experts))
        self._device = weights.device
        self._gates: list[_Gate] = []
        for i in range(c.num_dense_layers, c.num_layers):
            block = weights.block(i)
            norm = RmsNorm(block.device, block.vector("ffn_norm", c.hidden), c.rms_eps)
            self._gates.append(_Gate(norm, Router(block, self._config)))
        shape = (len(HORIZONS), len(self._gates), self._config.top_k)
        self._predictions = np.full(shape, -1, np.int16)

    def observe(self, layer: int, x: Tensor) -> None:
        """Predict from a layer's states (T, H) before its experts; for `Decoder.observe`.

        Ignores steps of more than one token, which are prefill.
        """
        if len(x) != 1:
            return
        for row, horizon in enumerate(HORIZONS):
            at = layer + horizon - self._config.num_dense_layers
            if 0 <= at < len(self._gates):
                gate = self._gates[at]
                ids, _ = gate.router(gate.norm(x))
                self._predictions[row, at] = self._device.to_host(ids)[0].to(torch.int16).numpy()

    def predictions(self) -> NDArray[np.int16]:
        """Return those for the last decoded token (HORIZONS, L, G), best first; -1 = no layer."""
        return self._predictions.copy()

"""Multi-token prediction: a layer behind the network's, which drafts the token after the next.

It maps the network's state of a token and the token that followed it to the state that predicts
the next one. A state of its own takes the place of the network's in further drafts. Its row of the
KV cache at a position depends on that token and all before, as the rows of other layers do.
Sources: DeepSeek-V3 (arXiv 2412.19437), section 2.2; names and the order of norms: llama.cpp's
`nextn` tensors.
"""

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.interface import Device, Matrix, Pages, Tables
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import gather_rows
from hybridmoe.model.layer import Layer
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.weights import Weights

__all__ = ["MtpLayer"]


class MtpLayer:
    """Decoder layer over embeddings joined with states, and its output head."""

    def __init__(
        self,
        weights: Weights,
        c: ModelConfig,
        layer: Layer,
        embedding: QuantMatrix,
        head: tuple[Device, Matrix],
    ) -> None:
        """Bind the tensors on the device of `weights`. Errors: GGUFError.

        embedding, head: the network's, used where the layer has none of its own.
        """
        block, self.device = weights.block(c.num_layers), weights.device

        def norm(values: Tensor) -> RmsNorm:
            return RmsNorm(self.device, values, c.rms_eps)

        self._layer = layer
        self._token_norm = norm(block.vector("nextn.enorm", c.hidden))
        self._state_norm = norm(block.vector("nextn.hnorm", c.hidden))
        self._join = block.matrix("nextn.eh_proj", c.hidden, 2 * c.hidden)
        self._embedding = embedding
        if block.has("nextn.embed_tokens"):
            self._embedding = block.host_matrix("nextn.embed_tokens", c.vocab_size, c.hidden)
        has_norm = block.has("nextn.shared_head_norm")
        named = block.vector if has_norm else weights.vector
        self._norm = norm(named("nextn.shared_head_norm" if has_norm else "output_norm", c.hidden))
        self._head_device, self._head = head
        if block.has("nextn.shared_head_head"):
            self._head_device = self.device
            self._head = block.matrix("nextn.shared_head_head", c.vocab_size, c.hidden)

    def append(
        self, token_ids: Tensor, states: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor
    ) -> None:
        """Append the tokens to the KV cache; all else of the layer is left out.

        Shapes: token_ids (T) · states (T, H), normed, of the tokens before these · cos_sin
        (T, rope).
        """
        self._layer.append(self._joined(token_ids, states), pages, tables, cos_sin)

    def forward(
        self, token_ids: Tensor, states: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor
    ) -> Tensor:
        """Compute the normed states (T, H) behind the layer; see `append`."""
        x = self._joined(token_ids, states)
        residual = self._layer.forward(x, None, pages, tables, cos_sin, None)
        return self._norm(x, residual)

    def logits(self, states: Tensor) -> Tensor:
        """Compute logits (T, V), on the CPU, from what `forward` returns."""
        device = self._head_device
        with device.active():
            return device.to_host(device.linear(device.upload(states), self._head))

    def _joined(self, token_ids: Tensor, states: Tensor) -> Tensor:
        tokens = self.device.upload(gather_rows(self._embedding, token_ids))
        parts = self._token_norm(tokens), self._state_norm(self.device.upload(states))
        return self.device.linear(torch.cat(parts, 1), self._join)

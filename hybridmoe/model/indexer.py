"""Indexer of DeepSeek Sparse Attention: the positions that each token attends to.

Index keys are projected from a layer's input, one a token for all index heads, and cached beside
its latents; queries are projected from the latent of MLA's queries. Layers without an indexer
attend to the last selection before them. The released model's Hadamard transform of queries and
keys is left out: it changes no product. Sources: DeepSeek-V3.2-Exp (arXiv 2512.02556), section 2;
shared selections: GLM-5.2 (arXiv 2603.12201).
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from hybridmoe.config import IndexerConfig, ModelConfig
from hybridmoe.device.interface import Device, Pages, Tables
from hybridmoe.model.weights import BlockWeights

__all__ = ["Selector", "selectors"]

_NORM_EPS = 1e-6  # of the keys' layer norm, in every release; no key of the metadata has it


class Selector(Protocol):
    """Choice of the positions that a layer attends to."""

    def select(
        self, x: Tensor, q_latent: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor
    ) -> Tensor | None:
        """Select positions for T tokens; None where all of them attend to all that they see.

        Shapes: x (T, H) f32 · q_latent (T, Q) f32 · cos_sin (T, rope) f32 -> (T, top_k) int32, as
        `Device.select_positions` has it. pages: of the layer, to which index keys are appended.
        """
        ...


def selectors(blocks: Sequence[BlockWeights], c: ModelConfig) -> list[Selector | None]:
    """Make the selectors of the network's layers; None where attention is dense."""
    if c.indexer is None:
        return [None] * len(blocks)
    made: list[Selector | None] = []
    last: _Indexer | None = None
    for block, is_full in zip(blocks, c.indexer.is_full, strict=False):
        if is_full:
            last = _Indexer(block, c, c.indexer)
            made.append(last)
        else:
            assert last is not None, c.indexer.is_full
            made.append(_LastSelection(last, block.device))
    return made


class _Indexer:
    """Selector of a layer with an indexer."""

    def __init__(self, block: BlockWeights, c: ModelConfig, indexer: IndexerConfig) -> None:
        self.selected: Tensor | None = None  # in the step under way
        self._device, self._rope_dim, self._config = block.device, c.rope_dim, indexer
        num_heads, dim = indexer.num_heads, indexer.key_dim
        self._q = block.matrix("indexer.attn_q_b", num_heads * dim, c.q_lora_rank)
        self._k = block.matrix("indexer.attn_k", dim, c.hidden)
        self._norm_weight = block.vector("indexer.k_norm", dim)
        self._norm_bias = block.vector("indexer.k_norm", dim, "bias")
        self._head_weights = block.matrix("indexer.proj", num_heads, c.hidden)

    def select(
        self, x: Tensor, q_latent: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor
    ) -> Tensor | None:
        assert pages.index_keys is not None, "pages of a layer without an indexer"
        device, top_k = self._device, self._config.top_k
        keys = F.layer_norm(
            device.linear(x, self._k),
            (self._config.key_dim,),
            self._norm_weight,
            self._norm_bias,
            _NORM_EPS,
        )  # (T, D)
        self._rotate(keys.unsqueeze(1), cos_sin)
        device.store_kv(keys, pages.index_keys, tables)
        self.selected = None
        if tables.most_positions > top_k:
            queries = device.linear(q_latent, self._q).view(len(x), -1, self._config.key_dim)
            self._rotate(queries, cos_sin)  # (T, J, D)
            weights = device.linear(x, self._head_weights)  # (T, J)
            self.selected = device.select_positions(
                queries, weights, pages.index_keys, tables, top_k
            )
        return self.selected

    def _rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """Rotate the first dimensions of x (T, J, D) in place.

        Where pairs are halves apart they become neighbours: in queries and keys alike, so that
        their products are the same.
        """
        rotary = x[..., : self._rope_dim]
        if not self._config.has_neighbour_pairs:
            halves = rotary.view(*rotary.shape[:-1], 2, -1)
            rotary.copy_(halves.transpose(-1, -2).flatten(-2))
        self._device.rotate_(rotary, cos_sin)


class _LastSelection:
    """Selector of a layer without an indexer: the selection of the one before it."""

    def __init__(self, indexer: _Indexer, device: Device) -> None:
        self._indexer, self._device = indexer, device

    def select(
        self, x: Tensor, q_latent: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor
    ) -> Tensor | None:
        selected = self._indexer.selected
        return None if selected is None else self._device.upload(selected)

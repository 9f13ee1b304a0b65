"""Paged KV cache (MLA latents, index keys) with automatic prefix sharing.

The memory is planned once (`plan_kv`) and never grows. Full pages of a prompt or a response are
shared by reference. A page that matches only in part is copied, so that every cached token is
reused. Sources: paged attention, Kwon et al. 2023 (arXiv 2309.06180); the tree of prefixes, Zheng
et al. 2023 (arXiv 2312.07104).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.interface import Device, Pages
from hybridmoe.engine.kv_rows import RowLayout, Rows
from hybridmoe.engine.prefix_tree import Node, PrefixTree
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.planning.kv_plan import KvPlan, pages_for

__all__ = ["BlockTable", "KvCache"]


@dataclass(slots=True)
class BlockTable:
    """Pages of one sequence, in order. The first `len(nodes)` are shared with the prefix tree."""

    pages: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    cached_tokens: int = 0  # taken from the prefix cache at the start


class KvCache:
    """Allocates pages to sequences and shares those with equal prefixes. Not thread-safe."""

    def __init__(
        self, model: ModelConfig, plan: KvPlan, device: Device | Sequence[Device] | None = None
    ) -> None:
        """Reserve the memory; on the CPU the system commits pages at their first use.

        device: of all layers, or of each; None = the CPU. Errors: ConfigError if it does not fit,
        or if a device does not support the kv_type.
        """
        self.plan, self.rows = plan, RowLayout.of(model, plan.kv_type)
        if not isinstance(device, Sequence):
            device = [CpuDevice() if device is None else device] * model.num_loaded_layers
        # By kind of rows, and of each device: (its layers, pages, PAGE_TOKENS, row bytes)
        self._parts: list[list[Tensor]] = [[] for _ in self.rows.kinds]
        self.layers: list[Pages] = []
        for _, group in groupby(range(len(device)), key=lambda layer: id(device[layer])):
            layers = list(group)
            self.layers += self._pages_on(device[layers[0]], layers, model)
        self._free = list(range(plan.num_pages - 1, -1, -1))  # a stack; page 0 on top
        self._tree = PrefixTree()

    def _pages_on(self, device: Device, layers: list[int], model: ModelConfig) -> list[Pages]:
        """Reserve the memory of these layers on their device."""
        kv_type, index_keys = self.plan.kv_type, dict[int, Pages]()
        if (indexer := model.indexer) is not None:
            full = [layer for layer in layers if indexer.is_full[layer]]
            for layer, data in zip(full, self._reserve(1, device, len(full)), strict=True):
                index_keys[layer] = device.pages(data, kv_type, indexer.key_dim)
        memory = self._reserve(0, device, len(layers))
        return [
            device.pages(data, kv_type, model.latent_dim, index_keys.get(layer))
            for layer, data in zip(layers, memory, strict=True)
        ]

    def _reserve(self, kind: int, device: Device, num_layers: int) -> Tensor:
        """Reserve the pages of one kind of rows."""
        plan, row_bytes = self.plan, self.rows.row_bytes[kind]
        try:
            with loading_onto_gpu(f"the KV cache of {plan.num_tokens} tokens"):
                part = device.empty_bytes(num_layers, plan.num_pages, PAGE_TOKENS, row_bytes)
        except RuntimeError:  # on the CPU
            raise ConfigError(f"no memory for {plan}: lower the context or kv_tokens") from None
        self._parts[kind].append(part)
        return part

    @property
    def parts(self) -> list[Tensor]:
        """Pages of each device and kind of rows: (layers, pages, PAGE_TOKENS, row bytes)."""
        return [part for parts in self._parts for part in parts]

    @property
    def num_available_pages(self) -> int:
        """Pages that can be allocated: free ones, and cached ones that no sequence uses."""
        return len(self._free) + self._tree.num_unpinned

    @property
    def num_cached_pages(self) -> int:
        """Pages of the prefix cache that no sequence uses."""
        return self._tree.num_unpinned

    def num_cached_tokens(self, ids: Sequence[int]) -> int:
        """Length of the longest cached prefix of `ids`, without its last token."""
        nodes, _, num_partial = self._tree.match_prefix(ids)
        return len(nodes) * PAGE_TOKENS + num_partial

    def acquire_prefix(self, ids: Sequence[int]) -> BlockTable:
        """Start a block table with the longest cached prefix of `ids`."""
        nodes, partial, num_partial = self._tree.match_prefix(ids)
        self._tree.pin(nodes)
        table = BlockTable([node.page for node in nodes], list(nodes), len(nodes) * PAGE_TOKENS)
        if partial is not None:
            self._tree.pin([partial])  # not to be evicted for its own copy
            page = self._allocate_page()
            if page is not None:
                for part in self.parts:
                    part[:, page, :num_partial] = part[:, partial.page, :num_partial]
                table.pages.append(page)
                table.cached_tokens += num_partial
            self._tree.unpin([partial])
        return table

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Grow the block table to `num_tokens`. Returns False, unchanged, if too few pages are
        available.
        """
        missing = pages_for(num_tokens) - len(table.pages)
        if missing > self.num_available_pages:
            return False
        for _ in range(missing):
            page = self._allocate_page()
            assert page is not None
            table.pages.append(page)
        return True

    def share_full_pages(self, table: BlockTable, ids: Sequence[int], num_computed: int) -> None:
        """Add the pages that `ids[:num_computed]` fill to the prefix cache."""
        while (len(table.nodes) + 1) * PAGE_TOKENS <= num_computed:
            i = len(table.nodes)
            tokens = tuple(ids[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
            node = self._insert(table, tokens, i)
            self._tree.pin([node])
            table.nodes.append(node)
            table.pages[i] = node.page

    def free(self, table: BlockTable, ids: Sequence[int], num_computed: int) -> None:
        """Free the pages; those of `ids[:num_computed]` stay cached until they are evicted."""
        self.share_full_pages(table, ids, num_computed)
        num_kept = len(table.nodes)
        rest = tuple(ids[num_kept * PAGE_TOKENS : num_computed])
        if rest:
            self._insert(table, rest, num_kept)
            num_kept += 1
        self._free += table.pages[num_kept:]
        self._tree.unpin(table.nodes)
        table.pages, table.nodes = [], []

    def cached_pages(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Pages of the longest cached prefix of `ids`, without its last token, and its length.

        Valid until the cache changes.
        """
        nodes, partial, num_partial = self._tree.match_prefix(ids)
        pages = [node.page for node in [*nodes, *([partial] if partial else [])]]
        return pages, len(nodes) * PAGE_TOKENS + num_partial

    def read_rows(self, pages: Sequence[int], num_tokens: int) -> Rows:
        """Copy the first `num_tokens` of these pages to the CPU."""
        rows = self.rows.empty(num_tokens)
        for page, part, own in self._by_page(pages, rows):
            own[:] = part[:, page, : own.shape[1]].cpu().numpy()
        return rows

    def write_rows(self, pages: Sequence[int], rows: Rows) -> None:
        """Copy rows of T tokens to the first T tokens of these pages."""
        for page, part, own in self._by_page(pages, rows):
            if part.is_cpu:  # by numpy: torch would start threads for each page
                part.numpy()[:, page, : own.shape[1]] = own
            else:
                part[:, page, : own.shape[1]] = torch.from_numpy(own)

    def _by_page(
        self, pages: Sequence[int], rows: Rows
    ) -> Iterator[tuple[int, Tensor, NDArray[np.uint8]]]:
        """Yield the views of `rows` that belong to each page and part: page, part, view."""
        views = self.rows.views(rows)
        for i, page in enumerate(pages):
            tokens = slice(i * PAGE_TOKENS, (i + 1) * PAGE_TOKENS)
            for parts, view in zip(self._parts, views, strict=True):
                first = 0
                for part in parts:
                    yield page, part, view[first : first + len(part), tokens]
                    first += len(part)

    def _insert(self, table: BlockTable, tokens: tuple[int, ...], i: int) -> Node:
        """Insert page `i` of a table into the tree, or free it if the tree has it already."""
        parent = table.nodes[i - 1] if i else None
        node, freed = self._tree.insert(parent, tokens, table.pages[i])
        self._free += freed
        return node

    def _allocate_page(self) -> int | None:
        if self._free:
            return self._free.pop()
        return self._tree.evict()

"""The latents of all sequences: a fixed number of pages, shared where beginnings are the same.

The memory is planned once (`plan_kv`) and never grown. Full pages of a prompt or an answer are
shared by reference; of a page that fits only in part, the part is copied, so that every known token
is reused. Sources: pages, Kwon et al. 2023 (arXiv 2309.06180); the tree of prefixes, Zheng et al.
2023 (arXiv 2312.07104).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.interface import Device
from hybridmoe.engine.prefix_tree import Node, PrefixTree
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, row_bytes
from hybridmoe.planning.kv_plan import KvPlan, pages_for

__all__ = ["BlockTable", "KvCache"]


@dataclass(slots=True)
class BlockTable:
    """A sequence's pages, in order. The first ones belong to the tree, the rest to it alone."""

    pages: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    cached_tokens: int = 0  # found when it began


class KvCache:
    """Hands out pages and remembers what is in them. Not thread-safe."""

    def __init__(self, model: ModelConfig, plan: KvPlan, device: Device | None = None) -> None:
        """Reserve the memory, of which the system gives what is used; device: None = the CPU's.

        Errors: ConfigError where there is none, or for a kv_type that the device cannot use.
        """
        self.plan, self.latent_dim = plan, model.latent_dim
        device = CpuDevice() if device is None else device
        width = row_bytes(plan.kv_type, model.latent_dim)
        try:
            with loading_onto_gpu(f"latents of {plan.num_tokens} tokens"):
                data = device.empty_bytes(model.num_layers, plan.num_pages, PAGE_TOKENS, width)
        except RuntimeError:  # the CPU's
            raise ConfigError(f"no memory for {plan}: lower the context or kv_tokens") from None
        self.data: Tensor = data  # (layers, pages, PAGE_TOKENS, row bytes)
        self.layers = [device.pages(layer, plan.kv_type, model.latent_dim) for layer in data]
        self._free = list(range(plan.num_pages - 1, -1, -1))  # the lowest, last freed, first
        self._tree = PrefixTree()

    @property
    def num_available(self) -> int:
        """Pages that nobody holds; what they remember would be given up."""
        return len(self._free) + self._tree.num_idle

    @property
    def num_cached(self) -> int:
        """Pages that are held for prompts to come, and by nobody now."""
        return self._tree.num_idle

    def common_tokens(self, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` `begin` would find."""
        nodes, _, num_partial = self._tree.find(ids)
        return len(nodes) * PAGE_TOKENS + num_partial

    def begin(self, ids: Sequence[int]) -> BlockTable:
        """Take what is known of the beginning of `ids`."""
        nodes, partial, num_partial = self._tree.find(ids)
        self._tree.pin(nodes)
        holding = BlockTable([node.page for node in nodes], list(nodes), len(nodes) * PAGE_TOKENS)
        if partial is not None:
            self._tree.pin([partial])  # not to be evicted for the page that it is copied to
            page = self._take()
            if page is not None:
                self.data[:, page, :num_partial] = self.data[:, partial.page, :num_partial]
                holding.pages.append(page)
                holding.cached_tokens += num_partial
            self._tree.unpin([partial])
        return holding

    def reserve(self, holding: BlockTable, num_tokens: int) -> bool:
        """Let it have room for so many tokens; False, and nothing changed, where there is none."""
        missing = pages_for(num_tokens) - len(holding.pages)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            page = self._take()
            assert page is not None
            holding.pages.append(page)
        return True

    def commit(self, holding: BlockTable, ids: Sequence[int], num_computed: int) -> None:
        """Share the pages that are full with `ids[:num_computed]`."""
        while (len(holding.nodes) + 1) * PAGE_TOKENS <= num_computed:
            at = len(holding.nodes)
            tokens = tuple(ids[at * PAGE_TOKENS : (at + 1) * PAGE_TOKENS])
            node = self._insert(holding, tokens, at)
            self._tree.pin([node])
            holding.nodes.append(node)
            holding.pages[at] = node.page

    def release(self, holding: BlockTable, ids: Sequence[int], num_computed: int) -> None:
        """Give the pages back; what was computed is remembered until they are needed."""
        self.commit(holding, ids, num_computed)
        at = len(holding.nodes)
        rest = tuple(ids[at * PAGE_TOKENS : num_computed])
        if rest:
            self._insert(holding, rest, at)
            at += 1
        self._free += holding.pages[at:]
        self._tree.unpin(holding.nodes)
        holding.pages, holding.nodes = [], []

    def pages_of(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Pages, until the cache changes, of the known beginning of `ids`, and its tokens."""
        nodes, partial, num_partial = self._tree.find(ids)
        pages = [node.page for node in [*nodes, *([partial] if partial else [])]]
        return pages, len(nodes) * PAGE_TOKENS + num_partial

    def _insert(self, holding: BlockTable, tokens: tuple[int, ...], at: int) -> Node:
        """The tree's node for a page of it; its own page is freed where there is one already."""
        parent = holding.nodes[at - 1] if at else None
        page = holding.pages[at]
        node, freed = self._tree.insert(parent, tokens, page)
        self._free += freed
        return node

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        return self._tree.evict()

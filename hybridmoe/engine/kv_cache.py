"""The latents of all sequences: a fixed number of pages, shared where beginnings are the same.

The memory is planned once (`plan_kv`) and never grown. Full pages of a prompt or an answer are
shared by reference; of a page that fits only in part, the part is copied, so that every known token
is reused. Sources: pages, Kwon et al. 2023 (arXiv 2309.06180); the tree of prefixes, Zheng et al.
2023 (arXiv 2312.07104).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.prefix_tree import Node, PrefixTree
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.device import CpuDevice, Device
from hybridmoe.kernels.guard import loading_onto_card
from hybridmoe.kernels.latents import PAGE_TOKENS, row_bytes

__all__ = ["Holding", "KvCache", "KvPlan", "plan_kv"]

# Of the memory that is free when a model is opened, where nobody says how much latents may take.
_DEFAULT_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class KvPlan:
    """How much memory latents take, in all, for the life of an engine."""

    kv_type: str
    num_pages: int
    page_bytes: int  # of all layers
    context_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * PAGE_TOKENS

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    def __str__(self) -> str:
        return (
            f"latents: {self.num_tokens} tokens in {self.num_pages} pages, {self.kv_type},"
            f" {self.num_bytes / 2**20:.0f} MiB; context {self.context_tokens} tokens"
        )


def plan_kv(model: ModelConfig, config: EngineConfig, available_bytes: int) -> KvPlan:
    """The pages for `config`: one context at least, one for each running request at most.

    Between these, without `kv_tokens`, an eighth of the memory that is free.
    """
    page_bytes = model.num_layers * PAGE_TOKENS * row_bytes(config.kv_type, model.latent_dim)
    one = pages_for(config.context_tokens)
    if config.kv_tokens is not None:
        num_pages = pages_for(config.kv_tokens)
    else:
        affordable = int(available_bytes * _DEFAULT_SHARE) // page_bytes
        num_pages = max(one, min(affordable, one * config.max_running))
    return KvPlan(config.kv_type, num_pages, page_bytes, config.context_tokens)


def pages_for(num_tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


@dataclass(slots=True)
class Holding:
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
            with loading_onto_card(f"latents of {plan.num_tokens} tokens"):
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

    def begin(self, ids: Sequence[int]) -> Holding:
        """Take what is known of the beginning of `ids`."""
        nodes, partial, num_partial = self._tree.find(ids)
        self._tree.pin(nodes)
        holding = Holding([node.page for node in nodes], list(nodes), len(nodes) * PAGE_TOKENS)
        if partial is not None:
            self._tree.pin([partial])  # not to be evicted for the page that it is copied to
            page = self._take()
            if page is not None:
                self.data[:, page, :num_partial] = self.data[:, partial.page, :num_partial]
                holding.pages.append(page)
                holding.cached_tokens += num_partial
            self._tree.unpin([partial])
        return holding

    def reserve(self, holding: Holding, num_tokens: int) -> bool:
        """Let it have room for so many tokens; False, and nothing changed, where there is none."""
        missing = pages_for(num_tokens) - len(holding.pages)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            page = self._take()
            assert page is not None
            holding.pages.append(page)
        return True

    def commit(self, holding: Holding, ids: Sequence[int], num_computed: int) -> None:
        """Share the pages that are full with `ids[:num_computed]`."""
        while (len(holding.nodes) + 1) * PAGE_TOKENS <= num_computed:
            at = len(holding.nodes)
            tokens = tuple(ids[at * PAGE_TOKENS : (at + 1) * PAGE_TOKENS])
            node = self._insert(holding, tokens, at)
            self._tree.pin([node])
            holding.nodes.append(node)
            holding.pages[at] = node.page

    def release(self, holding: Holding, ids: Sequence[int], num_computed: int) -> None:
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

    def _insert(self, holding: Holding, tokens: tuple[int, ...], at: int) -> Node:
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

"""Prefix cache: a radix tree with the pages of the KV cache as nodes.

A node holds one page: the tokens that follow those of its ancestors. Pages in use are pinned, with
all their ancestors. When pages run out, the least recently used unpinned leaf is evicted.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence

from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["Node", "PrefixTree"]


class Node:
    """One cached page. A node with fewer than PAGE_TOKENS tokens is a leaf."""

    __slots__ = ("children", "last_used", "num_pins", "page", "parent", "tokens")

    def __init__(self, tokens: tuple[int, ...], page: int, parent: "Node | None") -> None:
        self.tokens = tokens
        self.page = page
        self.parent = parent
        self.children: dict[tuple[int, ...], Node] = {}
        self.num_pins = 0
        self.last_used = 0


class PrefixTree:
    """Matches, inserts and evicts pages. Does not touch the memory behind them."""

    def __init__(self) -> None:
        self._root = Node((), -1, None)
        self._clock = itertools.count(1)
        self._lru: list[tuple[int, int, Node]] = []  # heap of evictable leaves; some are stale
        self._order = itertools.count()
        self._num_nodes = 0
        self.num_unpinned = 0

    def match_prefix(self, ids: Sequence[int]) -> tuple[list[Node], Node | None, int]:
        """Match the longest cached prefix of `ids`, without its last token.

        Returns the full pages, the page that continues them in part, and its number of matching
        tokens. The last token is always computed: its logits give the next one.
        """
        nodes: list[Node] = []
        parent = self._root
        end = len(ids) - 1
        while (start := len(nodes) * PAGE_TOKENS) + PAGE_TOKENS <= end:
            child = parent.children.get(tuple(ids[start : start + PAGE_TOKENS]))
            if child is None:
                break
            nodes.append(child)
            parent = child
        rest = tuple(ids[start : min(start + PAGE_TOKENS, end)])
        partial, num_partial = None, 0
        if rest:
            for child in parent.children.values():
                if child.tokens[0] == rest[0]:
                    common = _common_length(child.tokens, rest)
                    if common > num_partial:
                        partial, num_partial = child, common
        return nodes, partial, num_partial

    def insert(
        self, parent: Node | None, tokens: tuple[int, ...], page: int
    ) -> tuple[Node, list[int]]:
        """Insert a page behind `parent`. Returns its node, and the pages to free.

        A cached page with the same tokens, or more, is kept and `page` is freed. Unpinned pages
        that hold only the first of these tokens are replaced.
        """
        parent = parent or self._root
        existing = parent.children.get(tokens)
        if existing is None and len(tokens) < PAGE_TOKENS:
            longer = (c for c in parent.children.values() if c.tokens[: len(tokens)] == tokens)
            existing = next(longer, None)
        if existing is not None:
            self._touch(existing)
            return existing, [page]
        freed = []
        for child in list(parent.children.values()):
            if child.num_pins == 0 and tokens[: len(child.tokens)] == child.tokens:
                freed.append(child.page)
                self._remove(child)
        node = Node(tokens, page, parent)
        parent.children[tokens] = node
        self.num_unpinned += 1
        self._num_nodes += 1
        self._touch(node)
        return node, freed

    def pin(self, nodes: Iterable[Node]) -> None:
        """Protect nodes from eviction. Their ancestors are pinned already, or among them."""
        for node in nodes:
            self.num_unpinned -= node.num_pins == 0
            node.num_pins += 1

    def unpin(self, nodes: Sequence[Node]) -> None:
        """Undo one `pin`, and mark the nodes as used now."""
        for node in reversed(nodes):
            node.num_pins -= 1
            assert node.num_pins >= 0, node.page
            self.num_unpinned += node.num_pins == 0
            self._touch(node)

    def evict(self) -> int | None:
        """Remove the least recently used leaf. Returns its page, or None if all are pinned."""
        while self._lru:
            last_used, _, node = heapq.heappop(self._lru)
            parent = node.parent
            if parent is None or not _is_evictable(node, last_used):
                continue  # removed, or used since: a newer entry follows when it is unpinned
            self._remove(node)
            self._push(parent)
            return node.page
        return None

    def _remove(self, node: Node) -> None:
        assert node.parent is not None, node.page
        del node.parent.children[node.tokens]
        node.parent = None
        self.num_unpinned -= 1
        self._num_nodes -= 1

    def _touch(self, node: Node) -> None:
        node.last_used = next(self._clock)
        self._push(node)

    def _push(self, node: Node) -> None:
        """Add a node to the eviction heap, if it is an unpinned leaf."""
        if node is not self._root and node.num_pins == 0 and not node.children:
            heapq.heappush(self._lru, (node.last_used, next(self._order), node))
            if len(self._lru) > 2 * self._num_nodes + 64:  # most are stale
                self._lru = [entry for entry in self._lru if _is_evictable(entry[2], entry[0])]
                heapq.heapify(self._lru)


def _is_evictable(node: Node, last_used: int) -> bool:
    """Test whether a heap entry is current and its node an unpinned leaf."""
    return (
        node.parent is not None
        and node.num_pins == 0
        and not node.children
        and node.last_used == last_used
    )


def _common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))

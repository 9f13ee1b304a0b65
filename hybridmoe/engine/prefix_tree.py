"""Which pages hold the latents of which beginnings: a tree whose nodes are pages.

A node stands for its tokens behind all of its ancestors'. Nodes in use are pinned, with all of
their ancestors; the others go when pages run out, the least recently used leaf first.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence

from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["Node", "PrefixTree"]


class Node:
    """One page. With fewer than PAGE_TOKENS tokens it is a leaf."""

    __slots__ = ("children", "num_pins", "page", "parent", "tokens", "used")

    def __init__(self, tokens: tuple[int, ...], page: int, parent: "Node | None") -> None:
        self.tokens = tokens
        self.page = page
        self.parent = parent
        self.children: dict[tuple[int, ...], Node] = {}
        self.num_pins = 0
        self.used = 0


class PrefixTree:
    """Finds, adds and evicts pages; the memory behind them is its owner's."""

    def __init__(self) -> None:
        self._root = Node((), -1, None)
        self._clock = itertools.count(1)
        self._idle: list[tuple[int, int, Node]] = []  # a heap of leaves that were idle once
        self._order = itertools.count()
        self._num_nodes = 0
        self.num_idle = 0  # nodes that nobody has pinned

    def find(self, ids: Sequence[int]) -> tuple[list[Node], Node | None, int]:
        """Full pages of the beginning of `ids`, and a page of which so many tokens follow.

        The last token of `ids` is never counted: somebody has to compute what comes after it.
        """
        nodes: list[Node] = []
        at = self._root
        end = len(ids) - 1
        while (start := len(nodes) * PAGE_TOKENS) + PAGE_TOKENS <= end:
            child = at.children.get(tuple(ids[start : start + PAGE_TOKENS]))
            if child is None:
                break
            nodes.append(child)
            at = child
        wanted = tuple(ids[start : min(start + PAGE_TOKENS, end)])
        best, most = None, 0
        if wanted:
            for child in at.children.values():
                if child.tokens[0] == wanted[0]:
                    common = _common(child.tokens, wanted)
                    if common > most:
                        best, most = child, common
        return nodes, best, most

    def insert(
        self, parent: Node | None, tokens: tuple[int, ...], page: int
    ) -> tuple[Node, list[int]]:
        """The node for `tokens` behind `parent`, new with `page` or old; pages no longer needed.

        A page whose tokens begin another's makes way for that.
        """
        parent = parent or self._root
        known = parent.children.get(tokens)
        if known is None and len(tokens) < PAGE_TOKENS:
            longer = (c for c in parent.children.values() if c.tokens[: len(tokens)] == tokens)
            known = next(longer, None)
        if known is not None:
            self._touch(known)
            return known, [page]
        freed = []
        for child in list(parent.children.values()):
            if child.num_pins == 0 and tokens[: len(child.tokens)] == child.tokens:
                freed.append(child.page)
                del parent.children[child.tokens]
                child.parent = None
                self.num_idle -= 1
                self._num_nodes -= 1
        node = Node(tokens, page, parent)
        parent.children[tokens] = node
        self.num_idle += 1
        self._num_nodes += 1
        self._touch(node)
        return node, freed

    def pin(self, nodes: Iterable[Node]) -> None:
        """Keep nodes, whose ancestors are pinned or among them."""
        for node in nodes:
            self.num_idle -= node.num_pins == 0
            node.num_pins += 1

    def unpin(self, nodes: Sequence[Node]) -> None:
        """Undo one `pin`; they count as used now."""
        for node in reversed(nodes):
            node.num_pins -= 1
            assert node.num_pins >= 0, node.page
            self.num_idle += node.num_pins == 0
            self._touch(node)

    def evict(self) -> int | None:
        """Forget the least recently used leaf; its page."""
        while self._idle:
            used, _, node = heapq.heappop(self._idle)
            parent = node.parent
            if parent is None or not _is_current(used, node):
                continue  # forgotten already, or in use again: it comes back when it is idle
            del parent.children[node.tokens]
            node.parent = None
            self.num_idle -= 1
            self._num_nodes -= 1
            self._offer(parent)
            return node.page
        return None

    def _touch(self, node: Node) -> None:
        node.used = next(self._clock)
        self._offer(node)

    def _offer(self, node: Node) -> None:
        if node is not self._root and node.num_pins == 0 and not node.children:
            heapq.heappush(self._idle, (node.used, next(self._order), node))
            if len(self._idle) > 2 * self._num_nodes + 64:  # most are out of date
                self._idle = [entry for entry in self._idle if _is_current(entry[0], entry[2])]
                heapq.heapify(self._idle)


def _is_current(used: int, node: Node) -> bool:
    """Whether an entry of the heap still says how long a leaf has been idle."""
    return (
        node.parent is not None and node.num_pins == 0 and not node.children and node.used == used
    )


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))

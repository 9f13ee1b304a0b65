"""Doubly linked lists through `State.node`: a head node, newest key at the front."""

from hybridmoe.experts.policy.jit import (
    ABSENT,
    EXPERTS,
    LAYERS,
    NEXT,
    PREV,
    SLOTS,
    WHERE,
    State,
    inline,
    is_pinned,
)

__all__ = [
    "back", "head", "move_to_front", "oldest_unpinned", "promote", "push_front", "share", "unlink",
]  # fmt: skip


@inline
def head(s: State, index: int) -> int:
    """Return the head node of list `index`."""
    return int(s.sizes[LAYERS] * s.sizes[EXPERTS] + index)


@inline
def push_front(s: State, head: int, key: int, where: int) -> None:
    """Link a key that is in no list."""
    second = s.node[head, NEXT]
    s.node[key, PREV] = head
    s.node[key, NEXT] = second
    s.node[second, PREV] = key
    s.node[head, NEXT] = key
    s.node[key, WHERE] = where


@inline
def unlink(s: State, key: int) -> None:
    """Remove a key from its list; it is in none then."""
    before, behind = s.node[key, PREV], s.node[key, NEXT]
    s.node[before, NEXT] = behind
    s.node[behind, PREV] = before
    s.node[key, WHERE] = ABSENT


@inline
def move_to_front(s: State, head: int, key: int) -> None:
    """Make a key the newest of its list."""
    where = s.node[key, WHERE]
    unlink(s, key)
    push_front(s, head, key, where)


@inline
def back(s: State, head: int) -> int:
    """Return the oldest key; the head itself if the list is empty."""
    return int(s.node[head, PREV])


@inline
def oldest_unpinned(s: State, head: int) -> int:
    """Find the oldest key that the current access does not use; -1 = none."""
    key = s.node[head, PREV]
    while key != head and is_pinned(s, key):
        key = s.node[key, PREV]
    return -1 if key == head else key


@inline
def promote(
    s: State, key: int, probation: int, protected: int, num_protected: int, most_protected: int
) -> None:
    """Move a key from list `probation` to `protected`, and demote the latter's oldest if too long.

    Lists are numbered from 1, their heads from 0. The last two arguments are entries of
    State.sizes: length and greatest length of the protected list.
    """
    unlink(s, key)
    push_front(s, head(s, protected - 1), key, protected)
    s.sizes[num_protected] += 1
    if s.sizes[num_protected] > s.sizes[most_protected]:
        demoted = back(s, head(s, protected - 1))
        unlink(s, demoted)
        push_front(s, head(s, probation - 1), demoted, probation)
        s.sizes[num_protected] -= 1


@inline
def share(s: State, layer: int) -> int:
    """Return the layer's even share of the slots."""
    spare = s.sizes[SLOTS] % s.sizes[LAYERS]
    return int(s.sizes[SLOTS] // s.sizes[LAYERS] + (1 if layer < spare else 0))

"""Residents in a compact array, optionally ordered as a min-heap of scores.

For policies that choose a victim by score. Two columns of `State.node`: RESIDENT is indexed by
place (row i holds the key at place i), PLACE by key. Scores are row 0 of `State.score`.
"""

from hybridmoe.experts.policy.jit import ABSENT, USED, WHERE, State, inline, is_pinned

__all__ = ["PLACE", "RESIDENT", "SCORE", "add", "drop", "lowest_unpinned", "pop", "push", "raised"]

RESIDENT, PLACE = 4, 5
SCORE = 0


@inline
def put(s: State, place: int, key: int) -> None:
    s.node[place, RESIDENT] = key
    s.node[key, PLACE] = place


@inline
def add(s: State, key: int) -> None:
    """Append a key; the caller counts it in USED afterwards."""
    put(s, s.sizes[USED], key)
    s.node[key, WHERE] = 1


@inline
def drop(s: State, key: int) -> None:
    """Remove a key from an array that is no heap; the caller then decrements USED."""
    put(s, s.node[key, PLACE], s.node[s.sizes[USED] - 1, RESIDENT])
    s.node[key, WHERE] = ABSENT


@inline
def lift(s: State, place: int) -> None:
    """Move a key with a low score up."""
    key = s.node[place, RESIDENT]
    while place > 0:
        above = (place - 1) // 2
        other = s.node[above, RESIDENT]
        if s.score[SCORE, other] <= s.score[SCORE, key]:
            break
        put(s, place, other)
        place = above
    put(s, place, key)


@inline
def sink(s: State, place: int, size: int) -> None:
    """Move a key with a high score down."""
    key = s.node[place, RESIDENT]
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        other = s.node[below, RESIDENT]
        if below + 1 < size:
            right = s.node[below + 1, RESIDENT]
            if s.score[SCORE, right] < s.score[SCORE, other]:
                below += 1
                other = right
        if s.score[SCORE, other] >= s.score[SCORE, key]:
            break
        put(s, place, other)
        place = below
    put(s, place, key)


@inline
def push(s: State, key: int) -> None:
    """Add a key to the heap; the caller counts it in USED afterwards."""
    add(s, key)
    lift(s, s.sizes[USED])


@inline
def raised(s: State, key: int) -> None:
    """Restore the heap after a resident's score has grown."""
    sink(s, s.node[key, PLACE], s.sizes[USED])


@inline
def pop(s: State, key: int) -> None:
    """Remove a key from the heap; the caller then decrements USED."""
    place, size = s.node[key, PLACE], s.sizes[USED] - 1
    last = s.node[size, RESIDENT]
    s.node[key, WHERE] = ABSENT
    if last != key:
        put(s, place, last)
        lift(s, place)
        sink(s, s.node[last, PLACE], size)


@inline
def lowest_unpinned(s: State) -> int:
    """Find the key with the lowest score that the current access does not use.

    Keys below one that may leave have no lower score, so that the search descends only behind
    pinned keys, which are few. Of equal scores the first place wins.
    """
    size = s.sizes[USED]
    best, best_place, place = -1, 0, 0
    while True:
        key = s.node[place, RESIDENT]
        if is_pinned(s, key):
            if 2 * place + 1 < size:
                place = 2 * place + 1
                continue
        elif (
            best < 0
            or s.score[SCORE, key] < s.score[SCORE, best]
            or (s.score[SCORE, key] == s.score[SCORE, best] and place < best_place)
        ):
            best, best_place = key, place
        # Next: the right sibling, or that of the nearest ancestor that has one.
        while place > 0 and (place % 2 == 0 or place + 1 >= size):
            place = (place - 1) // 2
        if place == 0:
            return int(best)
        place += 1

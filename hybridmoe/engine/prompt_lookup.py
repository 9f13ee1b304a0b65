"""Prompt lookup: what followed the last time that the same few tokens came by.

Proposals for speculative decoding without a second model; source: Saxena 2023, "Prompt Lookup
Decoding". The model checks them, so they change how fast an answer comes and nothing else.
"""

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_LENGTHS = (3, 2)  # of what must match, the longest first


class PromptLookup:
    """An index of one sequence's n-grams, kept up to date as it grows."""

    def __init__(self) -> None:
        self._indexed = 0  # tokens whose n-grams are known
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> position behind its last place

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `ids`, which only grows between calls."""
        last = len(ids)
        for end in range(self._indexed + 1, last):  # the n-gram at the very end is the question
            for length in _LENGTHS:
                if length <= end:
                    self._after[tuple(ids[end - length : end])] = end
        self._indexed = max(self._indexed, last - 1)
        for length in _LENGTHS:
            start = self._after.get(tuple(ids[last - length : last])) if length <= last else None
            if start is not None:
                known = [*ids[start : start + count]]
                while len(known) < count:  # a repetition goes on into what is proposed
                    known.append(known[len(known) - (last - start)])
                return known
        return []

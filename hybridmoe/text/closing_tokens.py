"""Tokens that close the open part where a model would end an incomplete answer.

A constraint forbids the end inside a string, a list or thoughts. Its share of the probability
would then fall to what else is allowed, such as one more digit for ever; it is the closing token's
instead: a quote in a string, else a bracket, else a quote to begin the string that must come.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClosingTokens"]

Ids = NDArray[np.int64]


class ClosingTokens:
    """Finds the closing tokens of one vocabulary in a mask."""

    def __init__(self, tokens: Sequence[bytes], ends: Iterable[int], thoughts_end: int | None):
        """tokens: the bytes of all ids. ends: of answers and of calls. thoughts_end: `</think>`."""
        ids = {raw: i for i, raw in enumerate(tokens) if len(raw) == 1}
        self._ends = np.array(sorted(ends), np.int64)
        self._thoughts_end = thoughts_end
        self._quote, self._letter = ids.get(b'"'), ids.get(b"Z")  # which JSON has in strings only
        self._brackets = [ids[raw] for raw in (b"}", b"]") if raw in ids]

    def find(self, mask: NDArray[np.uint32], *, is_json: bool) -> tuple[Ids, Ids] | None:
        """The ends, and what closes at this mask; None where an end is allowed, or nothing closes.

        is_json: outside of thoughts, only JSON is open.
        """

        def allows(token_id: int | None) -> bool:
            return token_id is not None and bool(mask[token_id // 32] >> (token_id % 32) & 1)

        if any(map(allows, self._ends.tolist())):
            return None
        if allows(self._thoughts_end):
            closing = [self._thoughts_end]
        elif not is_json:
            closing = []
        elif allows(self._letter):
            closing = [self._quote] if allows(self._quote) else []
        else:
            closing = list(filter(allows, self._brackets)) or list(filter(allows, [self._quote]))
        return (self._ends, np.array(closing, np.int64)) if closing else None

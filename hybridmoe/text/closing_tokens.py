"""Tokens that close an open string, list, object or `<think>` where the model would end.

A constraint forbids end tokens in an incomplete output. Their probability would otherwise fall to
whatever is allowed, such as one more digit without end. The sampler passes it to the closing token
instead: a quote in a string, else a bracket, else a quote that opens a required string.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClosingTokens"]

Ids = NDArray[np.int64]


class ClosingTokens:
    """Closing tokens of one vocabulary, found by the mask of the current state."""

    def __init__(self, tokens: Sequence[bytes], end_ids: Iterable[int], closing_ids: Iterable[int]):
        """tokens: bytes of all ids. end_ids: of responses and of calls. closing_ids: end
        thoughts, or values in XML.
        """
        ids = {raw: i for i, raw in enumerate(tokens) if len(raw) == 1}
        self._end_ids = np.array(sorted(end_ids), np.int64)
        self._closing_ids = list(closing_ids)
        self._quote = ids.get(b'"')
        self._in_string = ids.get(b"Z")  # JSON allows it in strings only
        self._brackets = [ids[raw] for raw in (b"}", b"]") if raw in ids]

    def eos_redirect(self, mask: NDArray[np.uint32], *, is_json: bool) -> tuple[Ids, Ids] | None:
        """Find the end tokens and the tokens that close instead, under this mask.

        None if the mask allows an end token, or nothing that closes. is_json: outside of thinking,
        the open part is JSON.
        """

        def allows(token_id: int | None) -> bool:
            return token_id is not None and bool(mask[token_id // 32] >> (token_id % 32) & 1)

        if any(map(allows, self._end_ids.tolist())):
            return None
        closing: list[int | None] = list(filter(allows, self._closing_ids))
        if closing or not is_json:
            pass
        elif allows(self._in_string):
            closing = [self._quote] if allows(self._quote) else []
        else:
            closing = list(filter(allows, self._brackets)) or list(filter(allows, [self._quote]))
        return (self._end_ids, np.array(closing, np.int64)) if closing else None

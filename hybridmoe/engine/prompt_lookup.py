"""Prompt-lookup speculation: draft the tokens that followed the last n-gram at an earlier place.

Needs no second model. The model verifies the draft, so it changes the speed of a response and
nothing else. Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from collections.abc import Sequence as Items

from hybridmoe.engine.sequence import Sequence

__all__ = ["NgramIndex", "PromptLookup"]

_NGRAM_SIZES = (3, 2)  # longest first


class PromptLookup:
    """Drafter that looks in each sequence's own tokens."""

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """Draft from each sequence's index; see `Drafter`."""
        drafts = []
        for sequence, count in zip(sequences, counts, strict=True):
            if not isinstance(sequence.draft_state, NgramIndex):
                sequence.draft_state = NgramIndex()
            drafts.append(sequence.draft_state.draft(sequence.ids, count))
        return drafts


class NgramIndex:
    """An index of one sequence's n-grams, kept up to date as it grows."""

    def __init__(self) -> None:
        self._num_indexed = 0
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last place

    def draft(self, ids: Items[int], count: int) -> list[int]:
        """Draft at most `count` tokens after `ids`, which only grows between calls."""
        end = len(ids)
        for i in range(self._num_indexed + 1, end):  # not the last n-gram: it is looked up
            for size in _NGRAM_SIZES:
                if size <= i:
                    self._follows[tuple(ids[i - size : i])] = i
        self._num_indexed = max(self._num_indexed, end - 1)
        for size in _NGRAM_SIZES:
            start = self._follows.get(tuple(ids[end - size : end])) if size <= end else None
            if start is not None:
                draft_ids = [*ids[start : start + count]]
                while len(draft_ids) < count:  # a repetition goes on within the draft
                    draft_ids.append(draft_ids[len(draft_ids) - (end - start)])
                return draft_ids
        return []

"""Speculative decoding: a drafter proposes tokens, which the model verifies in one step.

Where the model draws a draft token itself, the next position's logits count too; where it draws
another, the rest is dropped. So drafts change the number of steps, and no token of a response.
Source: Leviathan et al. 2023 (arXiv 2211.17192); the response is drawn from the model's own
probabilities, with its own random numbers.
"""

from collections.abc import Sequence as Items
from typing import Protocol

from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.scheduler import ScheduledChunk
from hybridmoe.engine.sequence import Sequence

__all__ = ["Drafter", "Speculator"]


class Drafter(Protocol):
    """Source of draft tokens. Belongs to the engine's thread.

    Keeps what it knows of a sequence in its `draft_state`.
    """

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """Draft the tokens behind each sequence's ids, at most as many as `counts` has."""
        ...


class Speculator:
    """Gives a step's decoding sequences their drafts, and counts what becomes of them."""

    def __init__(self, drafter: Drafter, most: int, cache: KvCache) -> None:
        """most: draft tokens of one sequence in a step."""
        self._drafter, self._most, self._cache = drafter, most, cache
        self.num_drafted = 0
        self.num_accepted = 0

    def draft(self, chunks: Items[ScheduledChunk]) -> None:
        """Add draft tokens to the chunks that decode, as far as pages are available.

        A sequence under an active constraint gets none: its masks are made token by token.
        """
        found = [(c, n) for c in chunks if c.is_decode and (n := self._limit(c.sequence)) > 0]
        if not found:
            return
        drafts = self._drafter.draft([c.sequence for c, _ in found], [n for _, n in found])
        for (chunk, _), draft_ids in zip(found, drafts, strict=True):
            sequence = chunk.sequence
            if self._cache.grow(sequence.block_table, len(sequence.ids) + len(draft_ids)):
                chunk.draft_ids = draft_ids

    def count(self, sequence: Sequence, *, num_drafted: int = 0, num_accepted: int = 0) -> None:
        """Count a sequence's draft tokens that are verified, and those that the model has drawn."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        sequence.count_draft(num_drafted, num_accepted)

    def _limit(self, sequence: Sequence) -> int:
        constraint = sequence.request.constraint
        if not (constraint is None or constraint.is_inactive()):
            return 0
        return min(self._most, sequence.max_new_tokens - sequence.num_generated - 1)

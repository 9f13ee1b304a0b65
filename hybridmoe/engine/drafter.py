"""Speculative decoding: a drafter proposes tokens, which the model verifies in one step.

Where the model draws a draft token itself, the next position's logits count too; where it draws
another, the rest is dropped. So drafts change the number of steps, and no token of a response.
Source: Leviathan et al. 2023 (arXiv 2211.17192); the response is drawn from the model's own
probabilities, with its own random numbers.
"""

from collections.abc import Sequence as Items
from typing import Protocol

from hybridmoe.engine.draft_control import DraftControl, StepKind
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

    def __init__(
        self, drafter: Drafter, most: int, cache: KvCache, control: DraftControl | None = None
    ) -> None:
        """most: draft tokens of one sequence in a step. control: may choose fewer."""
        self._drafter, self._most, self._cache, self._control = drafter, most, cache, control
        self.num_drafted = 0
        self.num_accepted = 0
        self._kind: StepKind | None = None  # of a step that only decodes
        self._num_chosen = 0  # drafts of each sequence that may have some

    def draft(self, chunks: Items[ScheduledChunk]) -> None:
        """Add draft tokens to the chunks that decode, as far as pages are available.

        A sequence under an active constraint gets none: its masks are made token by token.
        """
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        limits = [(chunk, n) for chunk in decodes if (n := _num_allowed(chunk.sequence)) > 0]
        most, self._kind = self._most, None
        if len(decodes) == len(chunks):
            self._kind = StepKind(len(decodes), len(limits))
        if self._control is not None:  # a step with a prompt is long as it is
            most = 0 if self._kind is None else self._control.count(self._kind)
        self._num_chosen = most
        wanted = []
        for chunk, limit in limits:
            count = min(most, limit)
            end = len(chunk.sequence.ids) + count
            if count and self._cache.grow(chunk.sequence.block_table, end):
                wanted.append((chunk, count))
        if not wanted:
            return
        drafts = self._drafter.draft([c.sequence for c, _ in wanted], [n for _, n in wanted])
        for (chunk, _), draft_ids in zip(wanted, drafts, strict=True):
            chunk.draft_ids = draft_ids

    def count_drafted(self, chunk: ScheduledChunk) -> None:
        """Count the draft tokens of a chunk that is verified."""
        self.num_drafted += len(chunk.draft_ids)
        chunk.sequence.count_draft(len(chunk.draft_ids), 0)

    def count_accepted(self, chunk: ScheduledChunk) -> None:
        """Count one more draft token that the model has drawn itself."""
        chunk.num_accepted += 1
        self.num_accepted += 1
        chunk.sequence.count_draft(0, 1)

    def end_step(self, chunks: Items[ScheduledChunk], seconds: float) -> None:
        """Learn from a step that was verified."""
        if self._control is None:
            return
        for chunk in chunks:
            self._control.learn(len(chunk.draft_ids), chunk.num_accepted)
        numbers = [len(chunk.draft_ids) for chunk in chunks]
        if self._kind is not None and numbers.count(self._num_chosen) >= self._kind.num_drafting:
            self._control.update(self._kind, self._num_chosen, seconds)


def _num_allowed(sequence: Sequence) -> int:
    """Draft tokens that a sequence can take."""
    constraint = sequence.request.constraint
    if not (constraint is None or constraint.is_inactive()):
        return 0
    return sequence.max_new_tokens - sequence.num_generated - 1

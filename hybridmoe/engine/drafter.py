"""Speculative decoding: a drafter proposes tokens, which the model verifies in one step.

Where the model draws a draft token itself, the next position's logits count too; where it draws
another, the rest is dropped. So drafts change the number of steps, and no token of a response.
Under a constraint the model draws each of them with its own mask.
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

        Those that a constraint forbids are left out.
        """
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        limits = [(chunk, n) for chunk in decodes if (n := _most(chunk.sequence)) > 0]
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
            chunk.draft_ids = _allowed(chunk.sequence, draft_ids)

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


def _most(sequence: Sequence) -> int:
    """Draft tokens that a sequence can take: none while its mask is computed elsewhere."""
    constraint, pending = sequence.request.constraint, sequence.pending_mask
    is_active = constraint is not None and not constraint.is_inactive()
    is_computing = pending is not None and not pending.is_ready
    if constraint is not None and is_active and (constraint.is_slow() or is_computing):
        return 0
    return sequence.max_new_tokens - sequence.num_generated - 1


def _allowed(sequence: Sequence, draft_ids: list[int]) -> list[int]:
    """The first of the draft tokens, as far as the constraint allows them."""
    constraint = sequence.request.constraint
    if constraint is None or constraint.is_inactive():
        return draft_ids
    return draft_ids[: constraint.num_allowed(draft_ids)]

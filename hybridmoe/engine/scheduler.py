"""Who runs in the next step: admission, the shares of a step, and who gives way.

Requests are begun in the order of their arrival. Every running answer goes on in every step; what
the pacer leaves for prompts is shared evenly, so that a short one does not wait for a long one. A
request is begun when its prompt fits the pages; when answers outgrow them, the youngest gives its
pages up and is computed again later, so that the oldest always ends.
"""

from collections import deque
from dataclasses import dataclass

from hybridmoe.config import EngineConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.prefill_budget import PrefillBudget
from hybridmoe.engine.sequence import Sequence
from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["ScheduledChunk", "Scheduler"]


@dataclass(slots=True)
class ScheduledChunk:
    """A sequence's tokens of one step: its next pending ones, and proposals behind them."""

    sequence: Sequence
    num_tokens: int
    proposed: list[int]

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be chosen after this step."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """Keeps the queue and the batch. Belongs to the engine's thread."""

    def __init__(self, cache: KvCache, config: EngineConfig) -> None:
        self._cache = cache
        self._config = config
        self.pacer = PrefillBudget(config.chunk_tokens, config.decode_slowdown)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.num_preempted = 0
        self.num_cached_tokens = 0  # of all prompts begun
        self._blocked_at = -1  # pages available when the first in the queue did not fit

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new request."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a request that has ended, and take its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._give_up(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._blocked_at = -1  # another one is the first now

    def plan(self) -> list[ScheduledChunk]:
        """The next step; empty where nothing can run."""
        self._admit()
        decodes = self._decodes()
        prompts = [s for s in self.running if s.num_pending > 1]
        parts = [ScheduledChunk(s, 1, self._propose(s)) for s in decodes]
        budget = self.pacer.budget(len(decodes))
        order = sorted(prompts, key=lambda s: s.num_pending)
        if budget < len(prompts):  # there may always be a shorter one than the oldest
            order.sort(key=lambda s: s is not prompts[0])
        for i, sequence in enumerate(order):
            share = min(-(-budget // (len(prompts) - i)), sequence.num_pending)
            if share > 0:
                parts.append(ScheduledChunk(sequence, share, []))
                budget -= share
        return parts

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._config.max_running:
            sequence = self.waiting[0]
            if self._cache.num_available == self._blocked_at or self._is_being_read(sequence):
                return
            holding = self._cache.begin(sequence.ids)
            room = min(len(sequence.ids) + 1, self._config.context_tokens)
            if not self._cache.reserve(holding, room):
                self._cache.release(holding, sequence.ids, holding.cached_tokens)
                self._blocked_at = self._cache.num_available
                return
            self._blocked_at = -1
            self.waiting.popleft()
            if sequence.num_generated == 0:
                self.num_cached_tokens += holding.cached_tokens
            sequence.begin(holding)
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.number)

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Whether a running prompt is about to compute pages that this one could share."""
        known: int | None = None
        for other in self.running:
            if other.num_pending <= 1 or other.ids[:PAGE_TOKENS] != sequence.ids[:PAGE_TOKENS]:
                continue
            end = min(len(other.ids), len(sequence.ids) - 1)
            common = 0
            while (
                common + PAGE_TOKENS <= end
                and other.ids[common : common + PAGE_TOKENS]
                == sequence.ids[common : common + PAGE_TOKENS]
            ):
                common += PAGE_TOKENS
            if known is None:
                known = self._cache.common_tokens(sequence.ids)
            if common > max(known, other.num_computed // PAGE_TOKENS * PAGE_TOKENS):
                return True
        return False

    def _decodes(self) -> list[Sequence]:
        """Sequences with one pending token, each with a page for it."""
        chosen: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.num_pending != 1 or sequence not in self.running:
                continue
            while not self._cache.reserve(sequence.holding, len(sequence.ids)):
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                chosen.append(sequence)
        return [sequence for sequence in chosen if sequence in self.running]

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_up(sequence)
        self.waiting.appendleft(sequence)
        self.num_preempted += 1

    def _give_up(self, sequence: Sequence) -> None:
        self._cache.release(sequence.holding, sequence.ids, sequence.num_computed)
        sequence.num_computed = 0
        sequence.held = None

    def _propose(self, sequence: Sequence) -> list[int]:
        most = min(self._config.speculate, sequence.limit - sequence.num_generated - 1)
        constraint = sequence.request.constraint
        if most <= 0 or not (constraint is None or constraint.is_free()):
            return []
        proposed = sequence.lookup.propose(sequence.ids, most)
        fits = self._cache.reserve(sequence.holding, len(sequence.ids) + len(proposed))
        return proposed if fits else []

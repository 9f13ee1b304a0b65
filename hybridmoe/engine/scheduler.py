"""Continuous batching with chunked prefill: admits requests and schedules each step.

Requests are admitted in order of arrival, once their prompt fits the KV cache. Every step decodes
one token of each running response. The prefill budget is shared evenly among the prompts, so that
a short one does not wait for a long one. If it is large enough for keys and values to be expanded,
so are the shares of prompts that need it, for their bits to depend on neither budget nor others. If
decoding runs out of pages, the youngest request is preempted and recomputed later, so that the
oldest always finishes.
"""

from collections import deque
from dataclasses import dataclass, field

from hybridmoe.config import EngineConfig, Expansion
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.prefill_budget import PrefillBudget
from hybridmoe.engine.request import PromptLogprobs
from hybridmoe.engine.score_cache import ScoreCache
from hybridmoe.engine.sequence import Sequence
from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["ScheduledChunk", "Scheduler"]

_NEVER = Expansion()


@dataclass(slots=True)
class ScheduledChunk:
    """Tokens of one sequence in a step: its next pending ones, then draft tokens."""

    sequence: Sequence
    num_tokens: int  # without draft tokens
    num_expanded: int = 0  # of these, the first, with expanded keys and values
    draft_ids: list[int] = field(default_factory=list)  # added when the step is run
    num_accepted: int = 0  # of these
    is_sampled: bool = field(init=False)  # it reaches the last known token: the next is sampled

    def __post_init__(self) -> None:
        self.is_sampled = self.num_tokens == self.sequence.num_pending

    @property
    def is_decode(self) -> bool:
        """True for a chunk of one token that is sampled, draft tokens aside."""
        return self.num_tokens == 1 and self.is_sampled

    @property
    def num_sampled_rows(self) -> int:
        """Number of positions with logits to compute."""
        return 1 + len(self.draft_ids) if self.is_sampled else 0


class Scheduler:
    """The queue of waiting requests and the running batch. Belongs to the engine's thread."""

    def __init__(
        self,
        cache: KvCache,
        config: EngineConfig,
        disk: KvDisk | None = None,
        expansion: Expansion = _NEVER,
    ) -> None:
        self._cache = cache
        self._expansion = expansion
        self._disk = disk
        self._config = config
        self.prefill_budget = PrefillBudget(
            config.chunk_tokens, config.decode_slowdown, config.quick_chunk_tokens
        )
        self._scores = ScoreCache()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.num_preempted = 0
        self.num_cached_tokens = 0  # of all admitted prompts
        self._blocked_at = -1  # available pages when the first in the queue did not fit

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def is_loading(self) -> bool:
        """True while pages of a running sequence are read from disk."""
        return any(sequence.is_loading for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new request."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a finished request and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._blocked_at = -1  # the first in the queue may be another one now

    def schedule(self) -> list[ScheduledChunk]:
        """Schedule the next step; empty if nothing can run."""
        self._receive_loaded()
        self._admit()
        decodes = self._schedule_decodes()
        prefills = self._schedule_prefills(self.prefill_budget.num_tokens(len(decodes)))
        return [*(ScheduledChunk(s, 1) for s in decodes), *prefills]

    def _schedule_prefills(self, budget: int) -> list[ScheduledChunk]:
        """Share the budget among the prompts, the shortest first."""
        prefills = [s for s in self.running if s.num_pending > 1 and not s.is_loading]
        if not prefills:
            return []
        is_ample = budget >= self._expansion.least_tokens
        least = max(1, self._expansion.least_tokens) if is_ample else 1
        by_length = sorted(prefills, key=lambda s: s.num_pending)
        if budget < least * len(prefills):  # the oldest first, lest others starve it
            by_length.sort(key=lambda s: s is not prefills[0])
        chunks = []
        for i, sequence in enumerate(by_length):
            start, end = sequence.num_computed, self._expanded_end(sequence)
            most = min(budget, sequence.num_pending)
            num_tokens = min(-(-budget // (len(prefills) - i)), most)
            if is_ample:
                num_tokens = self._expansion.cut(start, end, num_tokens, most)
            if num_tokens > 0:
                chunk = self._expansion.chunk(start, num_tokens, end)
                chunks.append(ScheduledChunk(sequence, num_tokens, chunk.num_expanded))
                budget -= num_tokens
        return chunks

    def _expanded_end(self, sequence: Sequence) -> int:
        """Position behind a prompt's last token to be expanded, by what was cached at its start."""
        if sequence.expanded_end is None:
            known = sequence.num_computed
            sequence.expanded_end = self._expansion.end(sequence.num_prompt, known)
        return sequence.expanded_end

    def _receive_loaded(self) -> None:
        """Take what has been read from disk."""
        if self._disk is None:
            return
        for sequence in self.running:
            num_tokens = self._disk.receive(sequence)
            if num_tokens and sequence.num_generated == 0:
                self.num_cached_tokens += num_tokens
                sequence.report_progress()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._config.max_running:
            sequence = self.waiting[0]
            if self._cache.num_available_pages == self._blocked_at:
                return
            scores = self._known_scores(sequence)
            if self._is_prefix_in_flight(sequence, scores):
                return
            # Only a token that is scored already can come from the cache: others need their states.
            is_scored = sequence.is_scored
            num_known = max(sequence.num_scored, scores.end if scores else 0)
            num_cacheable = len(sequence.ids) if is_scored else num_known
            table = self._cache.acquire_prefix(sequence.ids[:num_cacheable])
            num_tokens = min(len(sequence.ids) + 1, self._config.context_tokens)
            if not self._cache.grow(table, num_tokens):
                self._cache.free(table, sequence.ids, table.cached_tokens)
                self._blocked_at = self._cache.num_available_pages
                return
            self._blocked_at = -1
            self.waiting.popleft()
            if sequence.num_generated == 0:
                self.num_cached_tokens += table.cached_tokens
            sequence.start(table)
            if self._disk is not None:
                self._disk.start(sequence, may_read=is_scored)
            if scores is not None and scores.end > sequence.num_scored:
                sequence.send_scores(scores.since(sequence.num_scored))
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.request_id)

    def keep_scores(self, sequence: Sequence) -> None:
        """Keep the log probabilities of a prompt for others that begin as it does."""
        prompt_ids = sequence.ids[: sequence.num_prompt]
        self._scores.add(prompt_ids, PromptLogprobs.join(sequence.scores))

    def _known_scores(self, sequence: Sequence) -> PromptLogprobs | None:
        """Log probabilities of a prefix of a prompt to be scored, from its second token on."""
        num_top = sequence.request.prompt_logprobs
        if num_top is None or sequence.is_scored:
            return None
        return self._scores.find(sequence.ids, num_top)

    def _is_prefix_in_flight(self, sequence: Sequence, scores: PromptLogprobs | None) -> bool:
        """Test whether a running prefill will compute pages that this request can share.

        scores: those known of a prompt to be scored, which another prompt to be scored may extend.
        """
        num_cached: int | None = None
        for other in self.running:
            if other.num_pending <= 1 or other.ids[:PAGE_TOKENS] != sequence.ids[:PAGE_TOKENS]:
                continue
            if not sequence.is_scored and not _will_score(other, sequence):
                continue
            end = min(len(other.ids), len(sequence.ids) - 1)
            common = 0
            while (
                common + PAGE_TOKENS <= end
                and other.ids[common : common + PAGE_TOKENS]
                == sequence.ids[common : common + PAGE_TOKENS]
            ):
                common += PAGE_TOKENS
            if not sequence.is_scored:
                if common > (scores.end if scores else 1):
                    return True
                continue
            if num_cached is None:
                num_cached = self._cache.num_cached_tokens(sequence.ids)
            if common > max(num_cached, other.num_computed // PAGE_TOKENS * PAGE_TOKENS):
                return True
        return False

    def _schedule_decodes(self) -> list[Sequence]:
        """Collect decoding sequences, each with a page for its token; preempts the youngest."""
        decodes: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.num_pending != 1 or sequence.is_loading or sequence not in self.running:
                continue
            while not self._cache.grow(sequence.block_table, len(sequence.ids)):
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                decodes.append(sequence)
        return [sequence for sequence in decodes if sequence in self.running]

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)
        self.num_preempted += 1

    def _free(self, sequence: Sequence) -> None:
        if self._disk is not None:
            self._disk.finish(sequence)
        self._cache.free(sequence.block_table, sequence.ids, sequence.num_computed)
        sequence.num_computed = 0
        sequence.unsampled = None


def _will_score(other: Sequence, sequence: Sequence) -> bool:
    """Test whether a running prompt is being scored with as many alternatives as another wants."""
    has, wants = other.request.prompt_logprobs, sequence.request.prompt_logprobs
    return not other.is_scored and has is not None and wants is not None and has >= wants

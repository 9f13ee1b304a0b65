"""One request in the engine: its token ids, block table, pending mask and usage."""

import itertools
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.engine.kv_cache import BlockTable
from hybridmoe.engine.kv_disk_reader import SequenceOnDisk
from hybridmoe.engine.mask_thread import PendingMask
from hybridmoe.engine.request import (
    Event,
    Finished,
    Listener,
    PromptLogprobs,
    PromptProgress,
    Request,
    StopToken,
    TokenExperts,
    Usage,
)
from hybridmoe.engine.sampler import Sampler

__all__ = ["FinishReason", "MaskSource", "SampledPosition", "Sequence"]

FinishReason = Literal["stop", "length", "cancelled", "error"]
MaskSource = Callable[[], NDArray[np.uint32] | None]  # None: the constraint is fulfilled
_request_ids = itertools.count(1)


class SampledPosition(NamedTuple):
    """Model outputs of a position whose token is sampled."""

    logits: NDArray[np.float32]  # (V,)
    experts: TokenExperts | None = None
    best: int | None = None  # the first token of the greatest logit, if that is known


class Sequence:
    """State of one request. All but `cancel` belongs to the engine's thread."""

    def __init__(
        self, request: Request, listener: Listener, vocab_size: int, context_tokens: int
    ) -> None:
        """Errors: ConfigError if the sampling parameters do not fit the vocabulary."""
        self.request_id = next(_request_ids)  # in order of arrival
        self.request = request
        self.ids = list(request.prompt_ids)
        self.num_prompt = len(self.ids)
        remaining = context_tokens - self.num_prompt
        max_tokens = request.params.max_tokens
        self.max_new_tokens = remaining if max_tokens is None else min(max_tokens, remaining)
        self.sampler = Sampler(request.params, self.ids, vocab_size, request.dry_breakers)
        self.draft_state: object = None  # of the engine's drafter
        self.last_state: Tensor | None = None  # (H,), final, of the last computed token; for MTP
        self.block_table = BlockTable()
        self.on_disk: SequenceOnDisk | None = None
        self.num_computed = 0  # tokens whose latents are in the KV cache
        self.expanded_end: int | None = None  # of `Expansion`, once the prompt's begin is known
        self.scores: list[PromptLogprobs] = []  # sent so far
        self.stop_ids = frozenset(request.params.stop_token_ids)
        self.next_mask: MaskSource | None = None
        self.mask_s = 0.0  # CPU time of the last mask
        self.pending_mask: PendingMask | None = None  # `next_mask`, if the mask thread computes it
        self.unsampled: SampledPosition | None = None  # until its mask is ready
        self.is_cancelled = False
        self.is_finished = False
        self._listener = listener
        self._num_starts = 0
        self._cached_tokens = self._disk_tokens = 0
        self._num_drafted = self._num_accepted = 0
        self._submitted_at = time.perf_counter()
        self._started_at = self._prefilled_at = self._last_token_at = 0.0

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Number of known tokens that are not computed yet."""
        return len(self.ids) - self.num_computed

    @property
    def num_scored(self) -> int:
        """Number of prompt tokens with their log probability sent; the first one has none."""
        return self.scores[-1].end if self.scores else 1

    @property
    def is_scored(self) -> bool:
        """True once the prompt's log probabilities are sent, or without a wish for any."""
        return self.request.prompt_logprobs is None or self.num_scored >= self.num_prompt

    def send_scores(self, scores: PromptLogprobs) -> None:
        """Send the log probabilities of the next prompt tokens."""
        assert scores.start == self.num_scored, (scores.start, self.num_scored)
        self.scores.append(scores)
        self.send(scores)

    def start(self, block_table: BlockTable) -> None:
        """Run on this block table: at first, or again after a preemption."""
        self.block_table = block_table
        self.num_computed = block_table.cached_tokens
        self.expanded_end = None
        self.last_state = None
        self._num_starts += 1
        if self._num_starts == 1:
            self._cached_tokens = block_table.cached_tokens
            self._started_at = time.perf_counter()

    @property
    def is_loading(self) -> bool:
        """True while pages of this sequence are read from disk."""
        return self.on_disk is not None and self.on_disk.load is not None

    def mark_loaded(self, num_computed: int) -> None:
        """Count tokens read from disk: now `num_computed` are in the KV cache."""
        if self._num_starts == 1:
            self._cached_tokens += num_computed - self.num_computed
            self._disk_tokens += num_computed - self.num_computed
        self.num_computed = num_computed

    def report_progress(self, num_tokens: int = 0) -> None:
        """Send prefill progress, until the first token is generated.

        num_tokens: of the step under way, by its layers.
        """
        if self.num_generated == 0:
            done = min(self.num_computed + num_tokens, self.num_prompt)
            self.send(PromptProgress(done, self.num_prompt, self._cached_tokens))

    def mark_prefilled(self) -> None:
        """Take the time of the first logits."""
        if self._prefilled_at == 0.0:
            self._prefilled_at = time.perf_counter()

    def append(self, token_id: int) -> None:
        """Add a generated token, and take its time."""
        self.ids.append(token_id)
        self._last_token_at = time.perf_counter()

    def count_draft(self, num_drafted: int, num_accepted: int) -> None:
        """Count draft tokens and those that the model confirmed."""
        self._num_drafted += num_drafted
        self._num_accepted += num_accepted

    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        now = time.perf_counter()
        started_at = self._started_at or now
        last_token_at = self._last_token_at
        return Usage(
            prompt_tokens=self.num_prompt,
            cached_tokens=self._cached_tokens,
            disk_tokens=self._disk_tokens,
            generated_tokens=self.num_generated,
            queue_s=started_at - self._submitted_at,
            prompt_s=(self._prefilled_at or now) - started_at,
            decode_s=last_token_at - self._prefilled_at if last_token_at else 0.0,
            draft_tokens=self._num_drafted,
            accepted_tokens=self._num_accepted,
        )

    def send(self, event: Event) -> None:
        """Send an event. A listener that raises cancels its own request."""
        try:
            self._listener(event)
        except Exception:
            self.is_cancelled = True

    def finish(
        self,
        reason: FinishReason,
        error: str | None = None,
        *,
        is_refusal: bool = False,
        stop_token: StopToken | None = None,
    ) -> None:
        """Send the last event, once. Does not free the pages."""
        if not self.is_finished:
            self.is_finished = True
            self.send(Finished(reason, self.usage(), error, is_refusal, stop_token))

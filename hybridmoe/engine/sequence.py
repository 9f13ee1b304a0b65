"""One request on its way through the engine: its tokens, its pages, its figures."""

import itertools
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.kv_cache import BlockTable
from hybridmoe.engine.mask_thread import PendingMask
from hybridmoe.engine.prompt_lookup import PromptLookup
from hybridmoe.engine.request import Event, Finished, Listener, PromptProgress, Request, Usage
from hybridmoe.engine.sampler import Sampler

__all__ = ["FinishReason", "MaskSource", "Sequence"]

FinishReason = Literal["stop", "length", "cancelled", "error"]
MaskSource = Callable[[], NDArray[np.uint32] | None]  # None: the constraint is fulfilled
Held = tuple[NDArray[np.float32], NDArray[np.int16] | None]  # logits and experts of a position
_numbers = itertools.count(1)


class Sequence:
    """The state of one request. All but `cancel` belongs to the engine's thread."""

    def __init__(
        self, request: Request, listener: Listener, vocab_size: int, context_tokens: int
    ) -> None:
        """Errors: ConfigError where the parameters do not fit the vocabulary."""
        self.number = next(_numbers)  # in order of arrival
        self.request = request
        self.ids = list(request.prompt_ids)
        self.num_prompt = len(self.ids)
        room = context_tokens - self.num_prompt
        most = request.params.max_tokens
        self.limit = room if most is None else min(most, room)  # tokens to generate
        self.sampler = Sampler(request.params, self.ids, vocab_size)
        self.lookup = PromptLookup()
        self.holding = BlockTable()
        self.num_computed = 0  # tokens whose latents are in the pages
        self.mask: MaskSource | None = None
        self.mask_s = 0.0  # of computing, that the last mask took
        self.pending_mask: PendingMask | None = None  # behind `mask`, where a thread computes it
        self.held: Held | None = None  # computed, but its mask is late
        self.is_cancelled = False
        self.is_finished = False
        self._listener = listener
        self._cached_tokens: int | None = None
        self._proposed = self._accepted = 0
        self._submitted = time.perf_counter()
        self._begun = self._answering = self._last = 0.0

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not computed."""
        return len(self.ids) - self.num_computed

    def begin(self, holding: BlockTable) -> None:
        """Take pages: at first, or again after they were given up."""
        self.holding = holding
        self.num_computed = holding.cached_tokens
        if self._cached_tokens is None:
            self._cached_tokens = holding.cached_tokens
            self._begun = time.perf_counter()

    def note_progress(self) -> None:
        """Say how much of the prompt is computed, before the answer begins."""
        if self.num_generated == 0:
            done, cached = min(self.num_computed, self.num_prompt), self._cached_tokens or 0
            self.send(PromptProgress(done, self.num_prompt, cached))

    def note_logits(self) -> None:
        """The model has come to the end of what is known."""
        if self._answering == 0.0:
            self._answering = time.perf_counter()

    def note_token(self) -> None:
        """A token was generated and counts."""
        self._last = time.perf_counter()

    def note_proposals(self, proposed: int, accepted: int) -> None:
        """Prompt lookup proposed tokens, of which some were right."""
        self._proposed += proposed
        self._accepted += accepted

    def usage(self) -> Usage:
        """The figures so far."""
        now = time.perf_counter()
        begun = self._begun or now
        return Usage(
            prompt_tokens=self.num_prompt,
            cached_tokens=self._cached_tokens or 0,
            generated_tokens=self.num_generated,
            queue_s=begun - self._submitted,
            prompt_s=(self._answering or now) - begun,
            decode_s=self._last - self._answering if self._last else 0.0,
            proposed_tokens=self._proposed,
            accepted_tokens=self._accepted,
        )

    def send(self, event: Event) -> None:
        """Pass an event on; a listener that fails ends its own request."""
        try:
            self._listener(event)
        except Exception:
            self.is_cancelled = True

    def finish(
        self, reason: FinishReason, error: str | None = None, *, is_refusal: bool = False
    ) -> None:
        """Send the last event, once. Its pages are the caller's affair."""
        if not self.is_finished:
            self.is_finished = True
            self.send(Finished(reason, self.usage(), error, is_refusal))

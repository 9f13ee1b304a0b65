"""One step: the batch through the model, and each sequence's next tokens out of its logits."""

import time
from collections.abc import Callable, Set
from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.engine.constraint_masks import ConstraintMasks
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.request import TokenEvent
from hybridmoe.engine.sampler import log_probabilities
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import FinishReason, Sequence
from hybridmoe.errors import ConfigError, DeviceError, DiskError, NonFiniteError
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing

__all__ = ["StepRunner"]


class StepRunner:
    """Runs what the scheduler has planned. What fails inside a step fails its requests only."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        cache: KvCache,
        scheduler: Scheduler,
        writer: TraceWriter | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """wake: called from another thread where `resume` has something to do."""
        self._model = model
        self._eos_ids = eos_ids
        self._cache = cache
        self._scheduler = scheduler
        self._writer = writer
        self._masks = ConstraintMasks()
        self._wake = wake
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def start(self, sequence: Sequence) -> None:
        """Begin what can be done before the sequence runs: its first mask."""
        constraint = sequence.request.constraint
        if constraint is not None:
            self._masks.first(sequence, constraint)

    def run(self, parts: Items[ScheduledChunk]) -> None:
        """Run a step of at least one part."""
        started = time.perf_counter()
        self._masks.begin_step()
        for part in parts:
            if not part.is_last or part.num_tokens > 1:
                part.sequence.note_progress()
        try:
            logits, experts, finite = self._forward(parts)
        except Exception as error:
            for part in parts:
                self.finish(part.sequence, "error", _line(error))
            return
        self.num_steps += 1
        row = 0
        for part, is_finite in zip(parts, finite, strict=True):
            rows = 1 + len(part.proposed) if part.is_last else 0
            try:
                if not is_finite:  # nothing of it goes on: not into the cache either
                    ids, span = _work(part)
                    raise NonFiniteError(self._model.find_damage(ids, span, self._cache.layers))
                self._advance(part, logits[row : row + rows], experts[row : row + rows])
            except Exception as error:
                self._fail(part.sequence, error)
            row += rows
        num_decodes = sum(part.num_tokens == 1 and part.is_last for part in parts)
        num_prompt = sum(p.num_tokens for p in parts if not (p.num_tokens == 1 and p.is_last))
        self._scheduler.pacer.note(num_decodes, num_prompt, time.perf_counter() - started)

    @property
    def is_holding(self) -> bool:
        """True while running sequences wait for their masks."""
        return any(sequence.held is not None for sequence in self._scheduler.running)

    def resume(self) -> None:
        """Go on with sequences whose masks were late, and end those that wait for too long."""
        for sequence in list(self._scheduler.running):
            if sequence.held is None:
                continue
            try:
                if self._masks.check_late(sequence):
                    (logits, experts), sequence.held = sequence.held, None
                    self._take(sequence, logits, experts)
            except Exception as error:
                self._fail(sequence, error)

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
        *,
        is_refusal: bool = False,
    ) -> None:
        """End a request: its pages first, so that they are there when its caller hears of it."""
        self._scheduler.remove(sequence)
        sequence.finish(reason, error, is_refusal=is_refusal)

    def close(self) -> None:
        """End the thread that computes masks."""
        self._masks.close()

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a request that cannot go on; what it asks for may be why."""
        is_refusal = isinstance(error, ConfigError)
        self.finish(sequence, "error", _line(error), is_refusal=is_refusal)

    def _forward(
        self, parts: Items[ScheduledChunk]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.int16] | None], list[bool]]:
        """Logits of the rows that tokens are chosen from, these rows' experts if asked for, and
        whether each part's results are finite numbers.
        """
        ids: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        traced: list[bool] = []
        for part in parts:
            part_ids, span = _work(part)
            ids += part_ids
            if part.is_last:
                count = 1 + len(part.proposed)
                rows += range(len(ids) - count, len(ids))
                traced += [part.sequence.request.expert_trace] * count
            spans.append(span)
        trace: list[Routing] | None = [] if any(traced) or self._writer is not None else None
        states = self._model.forward(ids, spans, self._cache.layers, trace)
        experts: list[NDArray[np.int16] | None] = [None] * len(rows)
        if trace:
            chosen, weights = (torch.stack(of, 1).cpu().numpy() for of in zip(*trace, strict=True))
            chosen = chosen.astype(np.int16)  # (T, layers, K)
            experts = [chosen[row] if wanted else None
                       for row, wanted in zip(rows, traced, strict=True)]  # fmt: skip
            if self._writer is not None:
                self._record(self._writer, parts, spans, chosen, weights)
        logits = torch.empty(0, 0)
        if rows:
            logits = self._model.logits(states if len(rows) == len(ids) else states[rows])
        return logits.numpy(), experts, self._are_finite(parts, spans, states, logits)

    def _are_finite(
        self,
        parts: Items[ScheduledChunk],
        spans: Items[Span],
        states: torch.Tensor,
        logits: torch.Tensor,
    ) -> list[bool]:
        """By the logits, which show every NaN of a layer; by states where a prompt goes on."""
        finite = []
        token = row = 0
        for part, span in zip(parts, spans, strict=True):
            rows = 1 + len(part.proposed) if part.is_last else 0
            numbers = logits[row : row + rows] if rows else states[token : token + span.num_tokens]
            finite.append(self._model.is_finite(numbers))
            token += span.num_tokens
            row += rows
        return finite

    def _record(
        self,
        writer: TraceWriter,
        parts: Items[ScheduledChunk],
        spans: Items[Span],
        ids: NDArray[np.int16],
        weights: NDArray[np.float32],
    ) -> None:
        """A request is a conversation of its own; prefill ends with its first token."""
        lengths = [span.num_tokens for span in spans]
        numbers = [part.sequence.number for part in parts]
        phases = [1 if part.sequence.num_generated else 0 for part in parts]
        writer.add_step(ids, weights, np.repeat(numbers, lengths), np.repeat(phases, lengths))

    def _advance(
        self,
        part: ScheduledChunk,
        logits: NDArray[np.float32],
        experts: Items[NDArray[np.int16] | None],
    ) -> None:
        """Note what was computed, and take the tokens that the logits give."""
        sequence = part.sequence
        is_last = part.is_last
        if sequence.num_generated == 0:
            self.num_prompt_tokens += part.num_tokens
        sequence.num_computed += part.num_tokens
        if is_last:
            if part.num_tokens > 1 or sequence.num_generated == 0:
                sequence.note_progress()
            sequence.note_logits()
            for i, proposed in enumerate([*part.proposed, None]):
                if not self._masks.is_ready(sequence, self._wake):
                    sequence.held = logits[i].copy(), experts[i]
                    break
                if not self._take(sequence, logits[i], experts[i]):
                    return
                if proposed is None or sequence.ids[-1] != proposed:
                    break
                sequence.num_computed += 1
            sequence.note_proposals(len(part.proposed), i)
        self._cache.commit(sequence.holding, sequence.ids, sequence.num_computed)

    def _take(
        self,
        sequence: Sequence,
        logits: NDArray[np.float32],
        experts: NDArray[np.int16] | None,
    ) -> bool:
        """Choose and report a token; False where the sequence has ended."""
        request = sequence.request
        if sequence.num_generated >= sequence.limit:
            self.finish(sequence, "length")
            return False
        mask = closing = None
        if sequence.mask is not None:
            mask = sequence.mask()
            if mask is None:
                self.finish(sequence, "stop")
                return False
            closing = request.constraint.closing() if request.constraint is not None else None
        token_id = sequence.sampler.sample(logits, mask, closing)
        if token_id in self._eos_ids and not request.params.ignore_eos:
            self.finish(sequence, "stop")
            return False
        sequence.ids.append(token_id)
        sequence.note_token()
        self.num_generated_tokens += 1
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if request.top_logprobs is not None:
            logprob, top = log_probabilities(logits, token_id, request.top_logprobs)
        sequence.send(TokenEvent(token_id, sequence.usage(), logprob, top, experts))
        if sequence.num_generated >= sequence.limit:
            self.finish(sequence, "length")
            return False
        if request.constraint is not None:
            self._masks.next(sequence, request.constraint, token_id)
        return True


def _work(part: ScheduledChunk) -> tuple[list[int], Span]:
    """The token ids that a part computes, and where they belong."""
    sequence, start = part.sequence, part.sequence.num_computed
    ids = [*sequence.ids[start : start + part.num_tokens], *part.proposed]
    return ids, Span(len(ids), start, sequence.holding.pages)


def _line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is no memory left for a step"
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ConfigError | DeviceError | DiskError | NonFiniteError)
        else f"{type(error).__name__}: {text}"
    )

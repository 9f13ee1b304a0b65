"""Runs a scheduled step: the model's forward pass, then sampling for each sequence."""

import time
from collections.abc import Callable, Set
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.engine.constraint_masks import ConstraintMasks
from hybridmoe.engine.drafter import Speculator
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.prompt_scorer import send_prompt_logprobs
from hybridmoe.engine.request import StopToken, TokenEvent, TokenExperts
from hybridmoe.engine.sampler import log_probabilities
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import FinishReason, SampledPosition, Sequence
from hybridmoe.errors import (
    ClusterError,
    ConfigError,
    DeviceError,
    DiskError,
    NonFiniteError,
    StalledReadError,
)
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.kernels.fused_step import StepResults
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.stage import OnLayer

__all__ = ["StepRunner"]

_PROGRESS_S = 1.0  # between reports within a step


class StepRunner:
    """Runs scheduled steps. An error within a step fails only the requests in it."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        cache: KvCache,
        scheduler: Scheduler,
        writer: TraceWriter | None = None,
        wake: Callable[[], None] = lambda: None,
        disk: KvDisk | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        """wake: called from another thread when `sample_late` can go on."""
        self._disk = disk
        self._model = model
        self._eos_ids = eos_ids
        self._cache = cache
        self._scheduler = scheduler
        self._writer = writer
        self._speculator = speculator
        self._keeps_states = model.config.runs_mtp
        self._masks = ConstraintMasks()
        self._wake = wake
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def prepare(self, sequence: Sequence) -> None:
        """Start the first mask of a sequence that is still queued."""
        constraint = sequence.request.constraint
        if constraint is not None:
            self._masks.start(sequence, constraint)

    def run(self, chunks: Items[ScheduledChunk]) -> None:
        """Run a step of at least one chunk."""
        started_at = time.perf_counter()
        self._masks.begin_step()
        for chunk in chunks:
            if not chunk.is_decode:
                chunk.sequence.report_progress()
        try:
            if self._speculator is not None:
                self._speculator.draft(chunks)
            found = self._forward(chunks)
        except StalledReadError:
            return  # cancelled requests are finished now, and the others' step is run again
        except Exception as error:
            for chunk in chunks:
                self.finish(chunk.sequence, "error", _error_line(error))
            return
        self.num_steps += 1
        num_decodes = sum(chunk.is_decode for chunk in chunks)
        num_prefill = sum(chunk.num_tokens for chunk in chunks if not chunk.is_decode)
        token = row = 0
        for chunk, is_finite in zip(chunks, found.finite, strict=True):
            end = row + chunk.num_sampled_rows
            next_token = token + chunk.num_tokens + len(chunk.draft_ids)
            try:
                if not is_finite:  # its latents must not enter the prefix cache either
                    raise self._damage(chunk)
                if not chunk.sequence.is_scored:
                    self._score_prompt(chunk, found.states[token:next_token])
                self._advance(chunk, found.positions[row:end])
                if self._keeps_states:
                    last = token + chunk.num_tokens + chunk.num_accepted - 1
                    chunk.sequence.last_state = found.states[last].clone()
            except Exception as error:
                self._fail(chunk.sequence, error)
            token, row = next_token, end
        seconds = time.perf_counter() - started_at
        self._scheduler.prefill_budget.update(num_decodes, num_prefill, seconds)
        if self._speculator is not None:
            self._speculator.end_step(chunks, seconds)

    @property
    def is_waiting_for_masks(self) -> bool:
        """True while a running sequence waits for its mask."""
        return any(sequence.unsampled is not None for sequence in self._scheduler.running)

    def sample_late(self) -> None:
        """Sample sequences with a late mask that is ready; fail those beyond the deadline."""
        for sequence in list(self._scheduler.running):
            if sequence.unsampled is None:
                continue
            try:
                if self._masks.check_late(sequence):
                    position, sequence.unsampled = sequence.unsampled, None
                    self._sample(sequence, position)
            except Exception as error:
                self._fail(sequence, error)

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
        *,
        is_refusal: bool = False,
        stop_token: StopToken | None = None,
    ) -> None:
        """Finish a request. Frees its pages before the last event is sent."""
        self._scheduler.remove(sequence)
        sequence.finish(reason, error, is_refusal=is_refusal, stop_token=stop_token)

    def close(self) -> None:
        """End the mask thread."""
        self._masks.close()

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Finish a request with an error; a ConfigError is a refusal of the request."""
        is_refusal = isinstance(error, ConfigError)
        self.finish(sequence, "error", _error_line(error), is_refusal=is_refusal)

    def _forward(self, chunks: Items[ScheduledChunk]) -> "_Outputs":
        """Run the model."""
        ids: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        is_traced: list[bool] = []
        for chunk in chunks:
            chunk_ids, span = _inputs(chunk)
            ids += chunk_ids
            spans.append(span)
            rows += range(len(ids) - chunk.num_sampled_rows, len(ids))
            is_traced += [chunk.sequence.request.expert_trace] * chunk.num_sampled_rows
        trace: list[Routing] | None = [] if any(is_traced) or self._writer is not None else None
        on_layer = self._layer_progress(chunks)
        before = _states_before(chunks) if self._keeps_states else None
        if len(rows) == len(ids) and trace is None and on_layer is None:
            results = self._model.decode(ids, spans, self._cache.layers, before)
            if results is not None:
                return _outputs(chunks, results)
        states = self._model.forward(ids, spans, self._cache.layers, trace, on_layer, before)
        experts: list[TokenExperts | None] = [None] * len(rows)
        if trace:
            chosen, weights = (torch.stack(of, 1).cpu().numpy() for of in zip(*trace, strict=True))
            chosen = chosen.astype(np.int16)  # (T, layers, K)
            if any(is_traced):
                tiers = self._model.expert_tiers(chosen[rows])
                experts = [TokenExperts(chosen[row], tiers[i]) if is_traced[i] else None
                           for i, row in enumerate(rows)]  # fmt: skip
            if self._writer is not None:
                self._record(self._writer, chunks, spans, chosen, weights)
        logits = torch.empty(0, 0)
        if rows:
            logits = self._model.logits(states if len(rows) == len(ids) else states[rows])
        positions = [
            SampledPosition(logits_of_row, experts_of_row)
            for logits_of_row, experts_of_row in zip(logits.numpy(), experts, strict=True)
        ]
        return _Outputs(states, positions, self._are_finite(chunks, spans, states, logits))

    def _layer_progress(self, chunks: Items[ScheduledChunk]) -> OnLayer | None:
        """Report the prefill within a long step, which may take a minute, by its layers."""
        prefills = [chunk for chunk in chunks if not chunk.is_decode]
        told_at = time.perf_counter()

        def on_layer(num_layers: int) -> None:
            nonlocal told_at
            if time.perf_counter() - told_at >= _PROGRESS_S:
                told_at = time.perf_counter()
                for chunk in prefills:
                    num_tokens = chunk.num_tokens * num_layers // self._model.config.num_layers
                    chunk.sequence.report_progress(num_tokens)

        return on_layer if prefills else None

    def _are_finite(
        self,
        chunks: Items[ScheduledChunk],
        spans: Items[Span],
        states: torch.Tensor,
        logits: torch.Tensor,
    ) -> list[bool]:
        """Test each chunk's logits, which show a NaN of any layer, or else its hidden states."""
        finite = []
        token = row = 0
        for chunk, span in zip(chunks, spans, strict=True):
            end = row + chunk.num_sampled_rows
            numbers = logits[row:end] if end > row else states[token : token + span.num_tokens]
            finite.append(self._model.is_finite(numbers))
            token += span.num_tokens
            row = end
        return finite

    def _record(
        self,
        writer: TraceWriter,
        chunks: Items[ScheduledChunk],
        spans: Items[Span],
        ids: NDArray[np.int16],
        weights: NDArray[np.float32],
    ) -> None:
        """Write the step to the routing trace: each request a conversation of two phases."""
        lengths = [span.num_tokens for span in spans]
        request_ids = [chunk.sequence.request_id for chunk in chunks]
        phases = [1 if chunk.sequence.num_generated else 0 for chunk in chunks]
        writer.add_step(ids, weights, np.repeat(request_ids, lengths), np.repeat(phases, lengths))

    def _score_prompt(self, chunk: ScheduledChunk, states: torch.Tensor) -> None:
        if not send_prompt_logprobs(self._model, chunk.sequence, states):
            raise self._damage(chunk)
        if chunk.sequence.is_scored:
            self._scheduler.keep_scores(chunk.sequence)

    def _damage(self, chunk: ScheduledChunk) -> NonFiniteError:
        """Make the error of a chunk whose outputs are not finite. Errors: as `find_damage`."""
        ids, span = _inputs(chunk)
        return NonFiniteError(self._model.find_damage(ids, span, self._cache.layers))

    def _advance(self, chunk: ScheduledChunk, positions: Items[SampledPosition]) -> None:
        """Count computed tokens, sample, and accept draft tokens until one differs."""
        sequence = chunk.sequence
        is_sampled = chunk.is_sampled
        if sequence.num_generated == 0:
            self.num_prompt_tokens += chunk.num_tokens
        sequence.num_computed += chunk.num_tokens
        if is_sampled:
            if chunk.num_tokens > 1 or sequence.num_generated == 0:
                sequence.report_progress()
            sequence.mark_prefilled()
            if chunk.draft_ids and self._speculator is not None:
                self._speculator.count_drafted(chunk)
            for position, draft_id in zip(positions, [*chunk.draft_ids, None], strict=True):
                if not self._masks.is_ready(sequence, self._wake):
                    sequence.unsampled = position._replace(logits=position.logits.copy())
                    break
                if not self._sample(sequence, position):
                    return
                if draft_id is None or sequence.ids[-1] != draft_id:
                    break
                sequence.num_computed += 1
                if self._speculator is not None:
                    self._speculator.count_accepted(chunk)
        self._cache.share_full_pages(sequence.block_table, sequence.ids, sequence.num_computed)
        if self._disk is not None:
            self._disk.offer(sequence)

    def _sample(self, sequence: Sequence, position: SampledPosition) -> bool:
        """Sample and send a token. Returns False if the sequence has finished."""
        request, logits = sequence.request, position.logits
        if sequence.num_generated >= sequence.max_new_tokens:
            self.finish(sequence, "length")
            return False
        mask = eos_redirect = None
        if sequence.next_mask is not None:
            mask = sequence.next_mask()
            if mask is None:
                self.finish(sequence, "stop")
                return False
            if request.constraint is not None:
                eos_redirect = request.constraint.eos_redirect()
        params = request.params
        banned = self._end_ids(sequence) if sequence.num_generated < params.min_tokens else ()
        token_id = sequence.sampler.sample(logits, mask, eos_redirect, banned, position.best)
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if request.top_logprobs is not None:
            logprob, top = log_probabilities(logits, token_id, request.top_logprobs)
        is_eos = token_id in self._eos_ids and not params.ignore_eos
        if is_eos or token_id in sequence.stop_ids:
            self.finish(sequence, "stop", stop_token=StopToken(token_id, logprob, top))
            return False
        sequence.append(token_id)
        self.num_generated_tokens += 1
        sequence.send(TokenEvent(token_id, sequence.usage(), logprob, top, position.experts))
        if sequence.num_generated >= sequence.max_new_tokens:
            self.finish(sequence, "length")
            return False
        if request.constraint is not None:
            self._masks.advance(sequence, request.constraint, token_id)
        return True

    def _end_ids(self, sequence: Sequence) -> list[int]:
        """List the tokens that end a response."""
        eos_ids: Set[int] = frozenset() if sequence.request.params.ignore_eos else self._eos_ids
        return sorted(sequence.stop_ids | eos_ids)


class _Outputs(NamedTuple):
    """Outputs of the model for a step."""

    states: torch.Tensor  # of all tokens
    positions: Items[SampledPosition]  # of all sampled rows
    finite: Items[bool]  # for each chunk whether its outputs are


def _outputs(chunks: Items[ScheduledChunk], results: StepResults) -> _Outputs:
    """Outputs of a step that only decodes."""
    positions = [
        SampledPosition(logits, None, best)
        for logits, best in zip(results.logits, results.best, strict=True)
    ]
    finite, row = [], 0
    for chunk in chunks:
        end = row + chunk.num_sampled_rows
        finite.append(min(results.best[row:end]) >= 0)
        row = end
    return _Outputs(results.states, positions, finite)


def _inputs(chunk: ScheduledChunk) -> tuple[list[int], Span]:
    """Token ids of a chunk, and their positions in the KV cache."""
    sequence, start = chunk.sequence, chunk.sequence.num_computed
    ids = [*sequence.ids[start : start + chunk.num_tokens], *chunk.draft_ids]
    return ids, Span(len(ids), start, sequence.block_table.pages, chunk.num_expanded)


def _states_before(chunks: Items[ScheduledChunk]) -> torch.Tensor | None:
    """Final states (S, H) before each chunk; zeros behind cached tokens; None if all are."""
    states = [chunk.sequence.last_state for chunk in chunks]
    known = [state for state in states if state is not None]
    if not known:
        return None
    empty = torch.zeros_like(known[0])
    return torch.stack([empty if state is None else state for state in states])


def _error_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory in a step"
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ClusterError | ConfigError | DeviceError | DiskError | NonFiniteError)
        else f"{type(error).__name__}: {text}"
    )

"""Continuous batching of requests on one model, in a thread of its own.

Any thread submits requests; events come back from the engine's thread, which owns all state.
Between two steps it queues new requests, finishes cancelled ones, and runs calls that need the KV
cache to themselves (`save`, `restore`) or the model (`logits`).
"""

import os
import threading
import weakref
from collections.abc import Callable, Set
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from hybridmoe.config import EngineConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_snapshot import restore_snapshot, save_snapshot
from hybridmoe.engine.request import Listener, Request
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.step_runner import StepRunner
from hybridmoe.errors import (
    ConfigError,
    ContextLengthError,
    DeviceError,
    HybridMoeError,
    NonFiniteError,
    QueueFullError,
)
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["Engine", "EngineStats", "RequestHandle"]

T = TypeVar("T")
POLL_S = 0.5  # interval of deadline checks while all sequences wait for masks


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of now, and counters since the engine started."""

    running: int
    waiting: int
    kv_pages_total: int
    kv_pages_used: int  # held by running requests
    kv_pages_cached: int  # of the prefix cache, in use by no request; evicted when needed
    kv_page_tokens: int
    steps: int
    prompt_tokens: int  # computed, so without cached ones
    cached_tokens: int  # found in the prefix cache
    generated_tokens: int
    preempted: int  # times a request lost its pages to an older one
    experts: ExpertStats | None = None  # None: all experts are in RAM


class RequestHandle:
    """A submitted request, to cancel it."""

    def __init__(self, sequence: Sequence, wake: Callable[[], None]) -> None:
        self.request_id = sequence.request_id
        self._sequence = sequence
        self._wake = wake

    def cancel(self) -> None:
        """Finish the request within one step. From any thread, any number of times."""
        self._sequence.is_cancelled = True
        self._wake()


class Engine:
    """Runs requests in one batch; results do not depend on it. Ends by `close` or when dropped."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        config: EngineConfig,
        writer: TraceWriter | None = None,
    ) -> None:
        """Plan the KV cache and start the thread.

        writer: gets the routing of every step; closed by the caller, after the engine.
        Errors: ConfigError if the KV cache does not fit in memory.
        """
        self.config = config
        self.kv_plan = plan_kv(model.config, config, psutil.virtual_memory().available)
        self._vocab_size = model.config.vocab_size
        cache = KvCache(model.config, self.kv_plan, model.device)
        model.use_graphs(cache.layers)
        self._worker = _Worker(model, eos_ids, config, cache, writer)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    def submit(self, request: Request, listener: Listener) -> RequestHandle:
        """Queue a request and return at once. From any thread.

        listener: called from the engine's thread with the request's events, `Finished` last; must
        neither block nor raise.
        Errors, before anything is queued: ConfigError for an empty prompt or an id outside the
        vocabulary; ContextLengthError; QueueFullError; DeviceError after the GPU has failed;
        HybridMoeError after `close`, or in a forked process.
        """
        self._worker.check_device()
        self._check(request.prompt_ids)
        constraint = request.constraint
        if request.params.ignore_eos and constraint is not None and not constraint.is_inactive():
            raise ConfigError("ignore_eos=True: expected False where the output is constrained")
        sequence = Sequence(request, listener, self._vocab_size, self.config.context_tokens)
        self._worker.add(sequence)
        return RequestHandle(sequence, self._worker.wake)

    @property
    def device_failure(self) -> str | None:
        """Error that ended all computation, in one line; None if there was none."""
        return self._worker.device_failure

    @property
    def is_forked(self) -> bool:
        """True in a process forked after the engine started, which cannot compute."""
        return self._worker.is_forked

    def stats(self) -> EngineStats:
        """Statistics of about now. From any thread."""
        return self._worker.stats()

    def logits(self, token_ids: Items[int]) -> NDArray[np.float32]:
        """Compute the logits (T, V) of all positions, without the prefix cache.

        Errors: those of `submit`; NonFiniteError.
        """
        ids = list(token_ids)
        self._check(ids)
        return self._worker.call(lambda: self._worker.logits(ids))

    def save(self, path: Path, token_ids: Items[int], fingerprint: str) -> int:
        """Save the longest cached prefix of a sequence. Returns its number of tokens.

        fingerprint: identifies the model; `restore` refuses another one. Errors: OSError.
        """
        ids = list(token_ids)
        cache = self._worker.cache
        return self._worker.call(lambda: save_snapshot(path, ids, cache, fingerprint))

    def restore(self, path: Path, fingerprint: str) -> list[int]:
        """Restore a saved prefix into the prefix cache. Returns its token ids.

        Another kv_type is converted. Errors: ConfigError for a file that is damaged, of another
        model, or larger than the free KV cache; OSError.
        """
        cache = self._worker.cache
        return self._worker.call(
            lambda: restore_snapshot(path, cache, fingerprint, self._vocab_size)
        )

    def close(self) -> None:
        """Cancel all requests and end the thread. Any number of times."""
        self._finalizer()

    def _check(self, ids: Items[int]) -> None:
        if not len(ids):
            raise ConfigError("the prompt is empty: expected at least one token")
        if len(ids) > self.config.context_tokens:
            raise ContextLengthError(len(ids), self.config.context_tokens)
        outside = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if outside is not None:
            raise ConfigError(f"token {outside} is outside the vocabulary of {self._vocab_size}")


class _Worker:
    """The engine's thread and its state. Does not refer to the Engine, which may be dropped."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        config: EngineConfig,
        cache: KvCache,
        writer: TraceWriter | None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._config = config
        self._scheduler = Scheduler(cache, config)
        self._runner = StepRunner(model, eos_ids, cache, self._scheduler, writer, self.wake)
        self._condition = threading.Condition()
        self._new: list[Sequence] = []
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._is_woken = self._is_stopping = False
        self._process = os.getpid()
        self._num_empty_steps = 0  # in a row
        self._thread = threading.Thread(target=self._run, name="hybridmoe-engine", daemon=True)
        self._thread.start()

    @property
    def device_failure(self) -> str | None:
        return self._model.guard.loss

    def check_device(self) -> None:
        """Raise DeviceError after the GPU has failed."""
        self._model.guard.check()

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that runs the thread."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise HybridMoeError after a fork, where not even the lock can be trusted."""
        if self.is_forked:
            raise HybridMoeError(
                "the model was loaded before this process was forked, which loses its threads:"
                " load it in the process that uses it, or start processes by spawn"
            )

    def add(self, sequence: Sequence) -> None:
        self.check_process()
        with self._condition:
            self._check_open()
            free = self._config.max_running - len(self._scheduler.running)
            queued = len(self._new) + len(self._scheduler.waiting)
            if queued >= self._config.max_waiting + max(0, free):
                raise QueueFullError(
                    f"the queue is full ({self._config.max_waiting} requests): try again later"
                )
            self._new.append(sequence)
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function between two steps and wait for its result."""
        self.check_process()
        future: Future[T] = Future()
        with self._condition:
            self._check_open()
            self._calls.append((function, future))
            self._condition.notify()
        return future.result()

    def wake(self) -> None:
        with self._condition:
            self._is_woken = True
            self._condition.notify()

    def stop(self) -> None:
        if self.is_forked:
            return
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def stats(self) -> EngineStats:
        cache, scheduler, runner = self.cache, self._scheduler, self._runner
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._new),
            kv_pages_total=cache.plan.num_pages,
            kv_pages_used=cache.plan.num_pages - cache.num_available_pages,
            kv_pages_cached=cache.num_cached_pages,
            kv_page_tokens=PAGE_TOKENS,
            steps=runner.num_steps,
            prompt_tokens=runner.num_prompt_tokens,
            cached_tokens=scheduler.num_cached_tokens,
            generated_tokens=runner.num_generated_tokens,
            preempted=scheduler.num_preempted,
            experts=self._model.expert_stats(),
        )

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        plan = plan_kv(
            self._model.config,
            EngineConfig(context_tokens=len(ids), kv_type=self._config.kv_type, max_running=1),
            0,
        )
        cache = KvCache(self._model.config, plan, self._model.device)
        pages = range(plan.num_pages)
        out = np.empty((len(ids), self._model.config.vocab_size), np.float32)
        for start in range(0, len(ids), self._config.chunk_tokens):
            chunk = ids[start : start + self._config.chunk_tokens]
            span = Span(len(chunk), start, pages)
            logits = self._model.logits(self._model.forward(chunk, [span], cache.layers))
            if not self._model.is_finite(logits):
                raise NonFiniteError(self._model.find_damage(chunk, span, cache.layers))
            out[start : start + len(chunk)] = logits.numpy()
        return out

    def _check_open(self) -> None:
        if self._is_stopping:
            raise HybridMoeError("the engine is closed")

    def _run(self) -> None:
        failure: str | None = None
        try:
            while self._receive():
                for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                    if sequence.is_cancelled:
                        self._runner.finish(sequence, "cancelled")
                self._runner.sample_late()
                chunks = self._schedule()
                self._num_empty_steps = 0 if chunks else self._num_empty_steps + 1
                if chunks:
                    self._runner.run(chunks)
        except Exception as error:  # outside of steps, whose errors fail their requests only
            failure = f"the engine has failed: {type(error).__name__}: {error}"
        with self._condition:
            self._is_stopping = True
        for _, future in self._calls:
            future.set_exception(HybridMoeError(failure or "the engine is closed"))
        for sequence in [*self._scheduler.running, *self._scheduler.waiting, *self._new]:
            sequence.finish("error" if failure else "cancelled", failure)
        self._runner.close()

    def _schedule(self) -> list[ScheduledChunk]:
        """Schedule the next step. Finishes all requests with an error if the GPU has failed."""
        try:
            with self._model.guard.watch():  # pages are copied on the GPU
                return self._scheduler.schedule()
        except DeviceError as error:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                self._runner.finish(sequence, "error", str(error))
            return []

    def _receive(self) -> bool:
        """Wait for work; queue new requests and run calls. Returns False to stop."""
        # While all sequences wait for masks, ready masks wake the thread; deadlines are polled.
        is_blocked = self._num_empty_steps > 1 and self._runner.is_waiting_for_masks
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    self._is_stopping
                    or self._is_woken
                    or self._new
                    or self._calls
                    or (self._scheduler.has_work and not is_blocked)
                ),
                timeout=POLL_S if is_blocked else None,
            )
            self._is_woken = False
            new, self._new = self._new, []
            for sequence in new:
                self._scheduler.add(sequence)
            calls, self._calls = self._calls, []
            is_stopping = self._is_stopping
        for sequence in new:
            self._runner.prepare(sequence)
        for function, future in calls:
            try:
                with self._model.guard.watch():
                    result = function()
                future.set_result(result)
            except BaseException as error:
                future.set_exception(error)
        return not is_stopping

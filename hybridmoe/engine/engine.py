"""Many requests on one model: one thread that runs steps while there is work.

Callers hand requests in from any thread and hear of them by events; all state belongs to the
engine's thread. Between two steps it takes in what is new, ends what was cancelled, and runs what
has to have the cache for itself (`logits`, `save`, `restore`).
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
from hybridmoe.engine.kv_snapshot import read_sequence, write_sequence
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

__all__ = ["Engine", "EngineStats", "Ticket"]

T = TypeVar("T")
_LOOK_S = 0.5  # between looks at deadlines where nothing else is to do


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges now, and counts since the engine began."""

    running: int
    waiting: int
    kv_pages_total: int
    kv_pages_used: int  # held by running requests
    kv_pages_cached: int  # held for prompts to come; given up when needed
    kv_page_tokens: int
    steps: int
    prompt_tokens: int  # computed; those of a prompt that are found in the cache are not
    cached_tokens: int  # found in the cache
    generated_tokens: int
    preempted: int  # times a request gave its pages up to an older one
    experts: ExpertStats | None = None  # of the expert cache, where there is one


class Ticket:
    """A submitted request."""

    def __init__(self, sequence: Sequence, wake: Callable[[], None]) -> None:
        self.request_id = sequence.number
        self._sequence = sequence
        self._wake = wake

    def cancel(self) -> None:
        """End the request within one step. From any thread, any number of times."""
        self._sequence.is_cancelled = True
        self._wake()


class Engine:
    """Continues requests together, each as if it were alone. Ends with `close`, or when dropped."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        config: EngineConfig,
        writer: TraceWriter | None = None,
    ) -> None:
        """Plan the cache and start the thread.

        writer: gets every step's routing; whoever made it closes it, after the engine.
        Errors: ConfigError where memory cannot be had.
        """
        self.config = config
        self.kv_plan = plan_kv(model.config, config, psutil.virtual_memory().available)
        self._vocab_size = model.config.vocab_size
        cache = KvCache(model.config, self.kv_plan, model.device)
        model.use_graphs(cache.layers)
        self._worker = _Worker(model, eos_ids, config, cache, writer)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue a request; returns at once. From any thread.

        listener gets the request's events, the last of which is `Finished`, from the engine's
        thread: it must neither block nor raise.
        Errors, before anything is queued: ConfigError for an empty prompt or an id outside the
        vocabulary; ContextLengthError; QueueFullError; DeviceError where the card has failed
        before; HybridMoeError after `close`, and in a process that was forked since.
        """
        self._worker.check_device()
        self._check(request.prompt_ids)
        constraint = request.constraint
        if request.params.ignore_eos and constraint is not None and not constraint.is_free():
            raise ConfigError("ignore_eos=True: expected False where the output is constrained")
        sequence = Sequence(request, listener, self._vocab_size, self.config.context_tokens)
        self._worker.add(sequence)
        return Ticket(sequence, self._worker.wake)

    @property
    def device_failure(self) -> str | None:
        """Why nothing can be computed any more, one line; None where all is well."""
        return self._worker.device_failure

    @property
    def is_forked(self) -> bool:
        """True in a process forked after the engine began: nothing can be computed in it."""
        return self._worker.is_forked

    def stats(self) -> EngineStats:
        """The engine's figures, as of about now."""
        return self._worker.stats()

    def logits(self, token_ids: Items[int]) -> NDArray[np.float32]:
        """Logits (T, V) of every position of a sequence, from scratch and into no cache.

        Errors: as `submit`; NonFiniteError.
        """
        ids = list(token_ids)
        self._check(ids)
        return self._worker.call(lambda: self._worker.logits(ids))

    def save(self, path: Path, token_ids: Items[int], fingerprint: str) -> int:
        """Write what the cache holds of a sequence's beginning; returns how many tokens.

        fingerprint: of the model, so that no other one takes the file for its own. Errors: OSError.
        """
        ids = list(token_ids)
        cache = self._worker.cache
        return self._worker.call(lambda: write_sequence(path, ids, cache, fingerprint))

    def restore(self, path: Path, fingerprint: str) -> list[int]:
        """Put a saved sequence's latents back into the cache; returns its token ids.

        Latents of another kv_type are converted. Errors: ConfigError for a file that is damaged or
        another model's, or that the cache has no room for; OSError.
        """
        cache = self._worker.cache
        return self._worker.call(lambda: read_sequence(path, cache, fingerprint, self._vocab_size))

    def close(self) -> None:
        """Cancel everything and end the thread. Any number of times."""
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
    """The thread and what belongs to it. Does not know the Engine, which may be dropped."""

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
        self._num_idle = 0  # steps in a row in which nothing could run
        self._thread = threading.Thread(target=self._run, name="hybridmoe-engine", daemon=True)
        self._thread.start()

    @property
    def device_failure(self) -> str | None:
        return self._model.guard.loss

    def check_device(self) -> None:
        """Errors: DeviceError where nothing can be computed any more."""
        self._model.guard.check()

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that has the thread."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Errors: HybridMoeError after a fork; not even the lock can be relied on then."""
        if self.is_forked:
            raise HybridMoeError(
                "the model was loaded before this process was forked, and its threads are not"
                " here: load it in the process that uses it, or start processes by spawn"
            )

    def add(self, sequence: Sequence) -> None:
        self.check_process()
        with self._condition:
            self._check_open()
            free = self._config.max_running - len(self._scheduler.running)
            queued = len(self._new) + len(self._scheduler.waiting)
            if queued >= self._config.max_waiting + max(0, free):
                raise QueueFullError(
                    f"{self._config.max_waiting} requests wait already: try again later"
                )
            self._new.append(sequence)
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function between two steps, and wait for it."""
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
            kv_pages_used=cache.plan.num_pages - cache.num_available,
            kv_pages_cached=cache.num_cached,
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
            while self._take_in():
                for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                    if sequence.is_cancelled:
                        self._runner.finish(sequence, "cancelled")
                self._runner.resume()
                parts = self._plan()
                self._num_idle = 0 if parts else self._num_idle + 1
                if parts:
                    self._runner.run(parts)
        except Exception as error:  # not of a step, which would have been its requests' alone
            failure = f"the engine has failed: {type(error).__name__}: {error}"
        with self._condition:
            self._is_stopping = True
        for _, future in self._calls:
            future.set_exception(HybridMoeError(failure or "the engine is closed"))
        for sequence in [*self._scheduler.running, *self._scheduler.waiting, *self._new]:
            sequence.finish("error" if failure else "cancelled", failure)
        self._runner.close()

    def _plan(self) -> list[ScheduledChunk]:
        """The next step. Where the card fails, or has before, all requests end."""
        try:
            with self._model.guard.watch():  # pages are copied on the card
                return self._scheduler.plan()
        except DeviceError as error:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                self._runner.finish(sequence, "error", str(error))
            return []

    def _take_in(self) -> bool:
        """Wait for something to do and take it in; False where the engine is to stop."""
        # A plan that stays empty waits for masks, which wake; their deadlines do not.
        is_held = self._num_idle > 1 and self._runner.is_holding
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    self._is_stopping
                    or self._is_woken
                    or self._new
                    or self._calls
                    or (self._scheduler.has_work and not is_held)
                ),
                timeout=_LOOK_S if is_held else None,
            )
            self._is_woken = False
            new, self._new = self._new, []
            for sequence in new:
                self._scheduler.add(sequence)
            calls, self._calls = self._calls, []
            is_stopping = self._is_stopping
        for sequence in new:
            self._runner.start(sequence)
        for function, future in calls:
            try:
                with self._model.guard.watch():
                    result = function()
                future.set_result(result)
            except BaseException as error:
                future.set_exception(error)
        return not is_stopping

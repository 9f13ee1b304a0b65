"""The engine's thread: queues requests, schedules and runs steps, sleeps without work."""

import os
import threading
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import EngineConfig, Expansion
from hybridmoe.engine.draft_control import DraftControl
from hybridmoe.engine.drafter import Speculator
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.mtp_drafter import MtpDrafter
from hybridmoe.engine.prompt_lookup import PromptLookup
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.stats import EngineStats
from hybridmoe.engine.step_runner import StepRunner
from hybridmoe.errors import (
    ClusterError,
    DeviceError,
    HybridMoeError,
    NonFiniteError,
    QueueFullError,
)
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.hardware import isa
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["POLL_S", "EngineThread"]

T = TypeVar("T")
POLL_S = 0.5  # interval of deadline checks while all sequences wait for masks or the disk


class EngineThread:
    """Thread and state of an engine. Does not refer to the Engine, which may be dropped."""

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        config: EngineConfig,
        cache: KvCache,
        writer: TraceWriter | None,
        fingerprint: str,
    ) -> None:
        """Start the thread. Errors: ConfigError for a KV cache on disk that is too small."""
        self.cache = cache
        self._model = model
        self._config = config
        self._condition = threading.Condition()
        disk = None
        if config.kv_disk is not None:
            disk = KvDisk(config.kv_disk, cache, fingerprint, self.wake)
        self._disk = disk
        self._expansion = _expansion(model, config)
        steps = _with_repeatable_steps(model, config)
        self._scheduler = Scheduler(cache, steps, disk, self._expansion)
        self._speculator = _speculator(model, config, cache)
        self._runner = StepRunner(
            model, eos_ids, cache, self._scheduler, writer, self.wake, disk, self._speculator
        )
        self._new: list[Sequence] = []
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._is_woken = self._is_stopping = False
        model.abandon_steps_when(self._is_step_unwanted)
        self._process = os.getpid()
        self._num_empty_steps = 0  # in a row
        self._thread = threading.Thread(target=self._run, name="hybridmoe-engine", daemon=True)
        self._thread.start()

    @property
    def device_failure(self) -> str | None:
        return self._model.guard.loss

    @property
    def outage(self) -> str | None:
        return self._model.outage

    def check_device(self) -> None:
        """Raise DeviceError after the GPU has failed, ClusterError while a host is away."""
        self._model.guard.check()
        if (outage := self.outage) is not None:
            raise ClusterError(outage)

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
        speculator = self._speculator
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
            draft_tokens=0 if speculator is None else speculator.num_drafted,
            accepted_tokens=0 if speculator is None else speculator.num_accepted,
            kv_disk=None if self._disk is None else self._disk.stats(),
            experts=self._model.expert_stats(),
        )

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        plan = plan_kv(
            self._model.config,
            EngineConfig(context_tokens=len(ids), kv_type=self._config.kv_type, max_running=1),
            0,
        )
        cache = KvCache(self._model.config, plan, self._model.devices)
        pages = range(plan.num_pages)
        out = np.empty((len(ids), self._model.config.vocab_size), np.float32)
        for start, num_tokens, num_expanded in self._expansion.chunks(
            len(ids), lambda: self._config.chunk_tokens
        ):
            chunk = ids[start : start + num_tokens]
            span = Span(num_tokens, start, pages, num_expanded)
            logits = self._model.logits(self._model.forward(chunk, [span], cache.layers))
            if not self._model.is_finite(logits):
                raise NonFiniteError(self._model.find_damage(chunk, span, cache.layers))
            out[start : start + len(chunk)] = logits.numpy()
        return out

    def _is_step_unwanted(self) -> bool:
        """True if a step under way holds up the end of a request, or of the thread."""
        with self._condition:
            queued = [*self._scheduler.waiting, *self._new]
        return self._is_stopping or any(
            sequence.is_cancelled for sequence in [*self._scheduler.running, *queued]
        )

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
        if self._disk is not None:
            self._disk.close()
        self._model.abandon_steps_when(lambda: False)  # refers to this no longer

    def _schedule(self) -> list[ScheduledChunk]:
        """Schedule the next step. Finishes all requests with an error if the GPU has failed."""
        try:
            with self._model.guard.watch():  # pages are copied on the GPU
                return self._scheduler.schedule()
        except DeviceError as error:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                self._runner.finish(sequence, "error", str(error))
            return []

    def _has_news(self) -> bool:
        return bool(self._is_stopping or self._is_woken or self._new or self._calls)

    def _receive(self) -> bool:
        """Wait for work; queue new requests and run calls. Returns False to stop."""
        # While all sequences wait, for masks or the disk, what is ready wakes the thread; deadlines
        # are polled.
        is_waiting = self._runner.is_waiting_for_masks or self._scheduler.is_loading
        is_blocked = self._num_empty_steps > 1 and is_waiting
        if not (self._has_news() or is_blocked) and self._scheduler.has_work:
            return True  # most steps: without the lock
        with self._condition:
            self._condition.wait_for(
                lambda: self._has_news() or (self._scheduler.has_work and not is_blocked),
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


def _with_repeatable_steps(model: Decoder, config: EngineConfig) -> EngineConfig:
    """Leave out what the clock decides where a prompt's bits depend on its steps: tiles, GPUs."""
    is_exact = isa.active() != "amx" and all(device.type == "cpu" for device in model.devices)
    return config if is_exact else replace(config, quick_chunk_tokens=0)


def _expansion(model: Decoder, config: EngineConfig) -> Expansion:
    """Rule by which prompts are expanded where the CPU computes attention."""
    if all(device.type != "cpu" for device in model.devices):
        return Expansion()
    return Expansion.of(model.config, isa.active(), config.kv_type)


def _speculator(model: Decoder, config: EngineConfig, cache: KvCache) -> Speculator | None:
    """Make what drafts tokens; None if nothing does. A model with an MTP layer has it to draft."""
    source, most, is_fixed = config.speculate
    if source == "lookup":
        return Speculator(PromptLookup(), most, cache)
    if source == "off" or not model.config.runs_mtp:
        return None
    control = None if is_fixed else DraftControl(most)
    return Speculator(MtpDrafter(model, cache.layers), most, cache, control)

"""Models of one server by name: loaded on demand, unloaded when idle or to make room.

One thread loads and unloads, one model after the other. Requests hold leases; a model that has one
is not unloaded. What is done next is chosen in serve/model_schedule.py.
"""

import asyncio
import contextlib
import functools
import logging
import operator
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from hybridmoe.engine.stats import EngineStats
from hybridmoe.errors import ConfigError, DeviceError, HybridMoeError, QueueFullError
from hybridmoe.llm.give_back import give_back_memory
from hybridmoe.llm.llm import LLM
from hybridmoe.llm.progress import Progress
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.model_schedule import Load, ScheduleRules, Unload, Wait, next_step
from hybridmoe.serve.model_slot import ModelSlot, ModelSource, Waiter
from hybridmoe.serve.served_model import Lease, ServedModel

__all__ = ["ModelPool"]

_log = logging.getLogger(__name__)
_LACKS_MEMORY = (ConfigError, DeviceError, MemoryError)  # what a load may raise if so


class ModelPool:
    """Models by name. Thread-safe; `lease` from an event loop.

    `start` loads the first one; until then requests are refused, as they are after `refuse`.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        rules: ScheduleRules | None = None,
        *,
        hold_s: float | None = 600.0,
        max_held: int = 64,
        retry_after_s: int = 5,
        report: Callable[[str], None] = lambda line: None,
        give_back: Callable[[weakref.ref[LLM]], None] = give_back_memory,
        on_first_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """hold_s: how long a request waits for a model that is not loaded; None: refused at once.

        report: gets lines for people. give_back: called after a model was closed.
        on_first_failure: called if `start` loads no model.
        """
        self._slots = {source.name: ModelSlot(source=source) for source in sources}
        self._names = {name: s.name for s in sources for name in (s.name, *s.aliases)}
        self._rules = rules or ScheduleRules()
        self._hold_s, self._max_held = hold_s, max_held
        self._retry_after_s = retry_after_s
        self._report = report
        self._give_back = give_back
        self._on_first_failure = on_first_failure
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = self._has_started = False
        self._refusal: Callable[[], ApiError] | None = None
        self._retired: EngineStats | None = None  # counters of models that were unloaded

    @property
    def slots(self) -> tuple[ModelSlot, ...]:
        """All models, the default one first; for reading."""
        return tuple(self._slots.values())

    @property
    def has_started(self) -> bool:
        """True once a model has been loaded."""
        return self._has_started

    @property
    def num_active(self) -> int:
        """Requests that use a model or wait for one."""
        with self._changed:
            return sum(slot.num_leases + len(slot.waiters) for slot in self.slots)

    def states(self) -> dict[str, dict[str, Any]]:
        """Describe the state of each model, for /health."""
        return {
            slot.source.name: {"status": slot.status, "progress": slot.progress}
            for slot in self.slots
        }

    def check_started(self) -> None:
        """Raise ApiError (503) before the first model is loaded."""
        with self._changed:
            self._check(self.slots[0])

    @property
    def device_failure(self) -> str | None:
        """Error that ended a model's computation, in one line; None if there was none."""
        with self._changed:
            models = [slot.model for slot in self.slots if slot.model is not None]
            failures = (model.llm.engine.device_failure for model in models)
            return next((failure for failure in failures if failure is not None), None)

    @property
    def outage(self) -> str | None:
        """Line on a host of a model's experts that is away for now; None if all are there."""
        with self._changed:
            engines = [slot.model.llm.engine for slot in self.slots if slot.model is not None]
        return next((outage for e in engines if (outage := e.outage) is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """All names and aliases."""
        return tuple(self._names)

    def resolve(self, name: str) -> str | None:
        """Find the name under which a model is listed; None for an unknown name."""
        return self._names.get(name)

    def slot(self, name: str) -> ModelSlot:
        """Find a model's place by any of its names."""
        return self._slots[self._names[name]]

    def attach(self, llm: LLM) -> None:
        """Serve a loaded model as the first one."""
        with self._changed:
            slot = self.slots[0]
            slot.put(ServedModel(slot.source.name, llm), time.monotonic())
            self._has_started = True

    def start(self) -> None:
        """Load the first model, and then whatever is asked for."""
        self.slots[0].refused_since_s = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="hybridmoe-models", daemon=True)
        self._thread.start()

    def try_lease(self, name: str) -> Lease | None:
        """Use a model if it is loaded; None if it has to be waited for. Errors: as `lease`."""
        slot = self.slot(name)
        with self._changed:
            self._check(slot)
            if slot.can_grant and not slot.waiters:
                return self._grant(slot)
            if self._hold_s is None:
                self._want(slot)
                raise self._not_loaded(slot)
        return None

    async def lease(self, name: str) -> Lease:
        """Use a model, once it is loaded. Cancelling this gives up the place in the queue.

        Errors: ApiError (503) if it is not loaded in time, or not at all; QueueFullError.
        """
        slot = self.slot(name)
        with self._changed:
            if (lease := self.try_lease(name)) is not None:
                return lease
            if len(slot.waiters) >= self._max_held:
                raise QueueFullError(
                    f"the queue is full: {len(slot.waiters)} requests wait for {slot.source.name}"
                )
            waiter = Waiter(time.monotonic())
            slot.waiters.append(waiter)
            self._changed.notify()
        try:
            async with asyncio.timeout(self._hold_s):
                return await waiter.future
        except BaseException as error:
            self._leave(slot, waiter)
            if isinstance(error, TimeoutError):
                self._want(slot)
                raise self._not_loaded(slot) from None
            raise

    def stats(self) -> EngineStats | None:
        """Sum the statistics of all engines, past ones too; None before the first."""
        with self._changed:
            engines = [slot.model.llm.engine for slot in self.slots if slot.model is not None]
            parts = [engine.stats() for engine in engines]
            past = [] if self._retired is None else [self._retired]
        return functools.reduce(operator.add, (*past, *parts)) if past or parts else None

    def refuse(self, error: Callable[[], ApiError]) -> None:
        """Refuse further requests, and those that wait, with an error."""
        with self._changed:
            self._refusal = error
            for slot in self.slots:
                self._fail_waiters(slot, error)

    def close(self) -> None:
        """End the thread, which cancels a load, and close the models.

        Errors: ConfigError where a profile or trace cannot be written.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        with contextlib.ExitStack() as models:
            for slot in self.slots:
                if slot.model is not None:
                    models.callback(slot.model.close)

    def _check(self, slot: ModelSlot) -> None:
        """Raise what keeps any request from waiting for a model."""
        if self._refusal is not None:
            raise self._refusal()
        if not self._has_started:
            raise self._not_loaded(slot)
        has_failed = slot.status == "failed"
        if has_failed and time.monotonic() < slot.failed_s + self._retry_after_s:
            raise self._not_loaded(slot)

    def _not_loaded(self, slot: ModelSlot) -> ApiError:
        return slot.refusal(self._retry_after_s, has_started=self._has_started)

    def _grant(self, slot: ModelSlot) -> Lease:
        assert slot.model is not None, slot.status
        slot.num_leases += 1
        return Lease(slot.model, lambda: self._release(slot))

    def _grant_waiters(self) -> None:
        for slot in self.slots:
            while slot.can_grant and slot.waiters:
                slot.waiters.pop(0).grant(self._grant(slot))

    def _release(self, slot: ModelSlot) -> None:
        with self._changed:
            slot.num_leases -= 1
            slot.used_s = time.monotonic()
            self._changed.notify()

    def _want(self, slot: ModelSlot) -> None:
        """Have a model loaded for a client that was told to come again."""
        with self._changed:
            if slot.refused_since_s is None and not slot.can_grant:
                slot.refused_since_s = time.monotonic()
            self._changed.notify()

    def _leave(self, slot: ModelSlot, waiter: Waiter) -> None:
        """Give up a waiter's place, or a lease that came too late."""
        with self._changed:
            if waiter in slot.waiters:
                slot.waiters.remove(waiter)
                self._changed.notify()
        waiter.give_up()

    def _fail_waiters(self, slot: ModelSlot, error: Callable[[], Exception]) -> None:
        waiters, slot.waiters = slot.waiters, []
        for waiter in waiters:
            waiter.fail(error())

    def _work(self) -> None:
        while (step := self._next()) is not None:
            if isinstance(step, Load):
                self._load(step.slot)
            else:
                self._unload(step)

    def _next(self) -> Load | Unload | None:
        """Await something to do, and mark it as begun; None once the pool is closing."""
        with self._changed:
            while not self._is_closing:
                step = next_step(self.slots, time.monotonic(), self._rules)
                if isinstance(step, Load):
                    step.slot.status, step.slot.progress = "loading", 0.0
                    return step
                if isinstance(step, Unload):
                    step.slot.status = "unloading"
                    return step
                self._grant_waiters()
                assert isinstance(step, Wait)
                self._changed.wait(step.seconds)
        return None

    def _load(self, slot: ModelSlot) -> None:
        def progress(step: Progress) -> None:
            if self._is_closing:
                raise _Ended
            slot.progress = step.done / max(1, step.total)

        began_s = time.monotonic()
        try:
            llm = slot.source.load(progress)
        except _Ended:
            return
        except Exception as error:
            self._note_failure(slot, error)
            return
        with self._changed:
            slot.put(ServedModel(slot.source.name, llm), time.monotonic())
            slot.load_duration_s = slot.loaded_s - began_s
            self._has_started = True
            if self._is_closing:
                return
            self._grant_waiters()
        slot.source.announce(llm)

    def _note_failure(self, slot: ModelSlot, error: Exception) -> None:
        with self._changed:
            slot.progress = None
            has_others = any(other.model is not None for other in self.slots)
            if has_others and not slot.must_be_alone and isinstance(error, _LACKS_MEMORY):
                slot.status, slot.must_be_alone = "unloaded", True
                return
            slot.status, slot.failed_s = "failed", time.monotonic()
            slot.failure = " ".join(str(error).split()) or type(error).__name__
            slot.refused_since_s = None
            slot.must_be_alone = False
            self._fail_waiters(slot, lambda: self._not_loaded(slot))
            has_started = self._has_started
        if not has_started:
            self._on_first_failure(error)
            return
        self._report(f"{slot.source.name} could not be loaded: {slot.failure}")
        if not isinstance(error, HybridMoeError | OSError):
            _log.error("a load failed", exc_info=error)

    def _unload(self, step: Unload) -> None:
        slot = step.slot
        with self._changed:
            model = slot.take()
            stats = model.llm.engine.stats().without_gauges()
            self._retired = stats if self._retired is None else self._retired + stats
        try:
            model.close()
        except Exception as error:  # of a profile or trace; all is released even so
            self._report(f"warning: {slot.source.name}: {error}")
        closed = weakref.ref(model.llm)
        del model
        self._give_back(closed)
        why = "idle" if step.is_idle else "another one is wanted"
        self._report(f"unloaded: {slot.source.name} ({why})")
        with self._changed:
            slot.status = "unloaded"


class _Ended(Exception):
    """Loading was cancelled."""

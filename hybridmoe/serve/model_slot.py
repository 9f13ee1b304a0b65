"""Place of one served model: its loader, its state, and the requests that wait for it."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridmoe.llm.llm import LLM
from hybridmoe.llm.progress import ProgressCallback
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.served_model import Lease, ServedModel

__all__ = ["ModelSlot", "ModelSource", "Status", "Waiter"]

Status = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be loaded, under its names."""

    name: str  # as /v1/models lists it
    aliases: tuple[str, ...] = ()
    load: Callable[[ProgressCallback], LLM]  # blocks; the callback may raise, to cancel it
    announce: Callable[[LLM], None] = lambda llm: None  # called once requests can use it


class Waiter:
    """A request that waits for a model, in its event loop."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Lease] = self._loop.create_future()

    def grant(self, lease: Lease) -> None:
        """Hand over a lease, from any thread; released if the request has gone."""

        def settle() -> None:
            if self.future.done():
                lease.release()
            else:
                self.future.set_result(lease)

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is closed
            lease.release()

    def give_up(self) -> None:
        """Take no lease, or release the one that was granted at this very moment."""
        future = self.future
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            future.result().release()

    def fail(self, error: Exception) -> None:
        """Fail the request, from any thread."""

        def settle() -> None:
            if not self.future.done():
                self.future.set_exception(error)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)


@dataclass(slots=True, kw_only=True)
class ModelSlot:
    """State of one model; guarded by its pool's lock. Times are those of time.monotonic."""

    source: ModelSource
    model: ServedModel | None = None
    last_card: dict[str, Any] | None = None  # of the model when it was last loaded
    status: Status = "unloaded"
    progress: float | None = None  # of a load, 0 to 1
    failure: str | None = None  # of the last load
    failed_s: float = 0.0
    num_leases: int = 0
    waiters: list[Waiter] = field(default_factory=list)  # in order of arrival
    refused_since_s: float | None = None  # a request was refused, and nothing loaded since
    is_leaving: bool = False  # grants no leases: another model is to take its memory
    must_be_alone: bool = False  # it did not load beside others
    loaded_s: float = 0.0
    load_duration_s: float = 0.0
    used_s: float = 0.0  # when the last lease ended

    @property
    def wanted_since_s(self) -> float | None:
        """Arrival of the oldest request that is not served yet, in seconds; None without one."""
        times = [waiter.since_s for waiter in self.waiters[:1]]
        if self.refused_since_s is not None:
            times.append(self.refused_since_s)
        return min(times, default=None)

    @property
    def card(self) -> dict[str, Any]:
        """Describe the model for /v1/models, as far as it is known."""
        card = self.last_card or {
            "id": self.source.name,
            "object": "model",
            "owned_by": "hybridmoe",
            "max_model_len": None,
            "meta": {},
        }
        return {**card, "meta": {**card["meta"], "status": self.status}}

    @property
    def can_grant(self) -> bool:
        """True if a request can use the model now."""
        return self.status == "loaded" and not self.is_leaving

    def refusal(self, retry_after_s: int, *, has_started: bool) -> ApiError:
        """Make the error of a request that does not get the model. has_started: one was loaded."""
        if self.status == "failed":
            why = "not available: it could not be loaded"
            why += f": {self.failure}" if has_started else ""
        elif self.status == "loading" or not has_started:
            why = "loading"
        else:
            why = "not loaded yet: another one is in use"
        return ApiError(
            503,
            f"the model is {why}",
            type="server_error",
            code="model_loading",
            headers={"Retry-After": str(retry_after_s)},
        )

    def put(self, model: ServedModel, now_s: float) -> None:
        """Take in the loaded model."""
        self.model, self.status, self.progress = model, "loaded", 1.0
        self.failure = self.refused_since_s = None
        self.last_card = model.card()
        self.loaded_s = self.used_s = now_s

    def take(self) -> ServedModel:
        """Give up the model, which no lease uses."""
        model = self.model
        assert model is not None and not self.num_leases, (self.source.name, self.num_leases)
        if not self.is_leaving:
            self.refused_since_s = None
        self.model, self.progress, self.is_leaving = None, None, False
        return model

"""Figures of one HTTP request, gathered while it is served, for its line in the log.

Carried by the context of the request's tasks, so that routes need not know of it. No text of
prompts or responses gets in.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridmoe.serve.generation import Generation

__all__ = ["RequestRecord"]


@dataclass(slots=True)
class RequestRecord:
    """Resources that one request used."""

    started_s: float = field(default_factory=time.perf_counter)
    model: str | None = None
    is_stream: bool = False  # asked for
    held_s: float = 0.0  # waiting for the model to be loaded
    on_wait: Callable[[], None] = lambda: None  # called when such a wait begins
    generations: "list[Generation]" = field(default_factory=list)

    @classmethod
    def of_context(cls) -> "RequestRecord":
        """Get the record of the request that the caller serves; a new one outside of any."""
        return _CURRENT.get() or cls()

    @classmethod
    @contextmanager
    def begun(cls) -> "Iterator[RequestRecord]":
        """Begin the record of a request: of all that is called inside."""
        record = cls()
        token = _CURRENT.set(record)
        try:
            yield record
        finally:
            _CURRENT.reset(token)
            record._forget()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for a model."""
        began_s = time.perf_counter()
        self.on_wait()
        try:
            yield
        finally:
            self.held_s += time.perf_counter() - began_s

    def _forget(self) -> None:
        """Let go of all models: timers of the connection keep the context, and so the record."""
        self.generations.clear()
        self.on_wait = lambda: None

    def fields(self) -> dict[str, Any]:
        """List the figures, from the model on; without a generation only the time."""
        fields: dict[str, Any] = {} if self.model is None else {"model": self.model}
        if self.generations:
            fields |= {
                name: sum(getattr(one, name) for one in self.generations)
                for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
            }
            last = self.generations[-1]
            fields["tokens_per_s"] = last.timings().get("predicted_per_second", 0.0)
            cut = "error" if last.has_failed else "cancelled"
            ends = {c.end.finish_reason if c.end else cut for c in last.choices}
            fields["finish_reason"] = ",".join(sorted(ends))
            queued = (c.usage.queue_s for one in self.generations for c in one.choices if c.usage)
            fields["queue_s"] = round(self.held_s + max(queued, default=0.0), 3)
        elif self.held_s >= 0.001:
            fields["queue_s"] = round(self.held_s, 3)
        fields["total_s"] = round(time.perf_counter() - self.started_s, 3)
        return fields


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request", default=None)

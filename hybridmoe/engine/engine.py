"""Many requests on one model: one thread that runs steps while there is work."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import EngineConfig
from hybridmoe.engine.request import Listener, Request
from hybridmoe.model.decoder import Decoder

__all__ = ["Engine", "EngineStats", "Ticket"]


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
    prompt_tokens: int  # of all requests begun
    cached_tokens: int  # of these, found in the cache
    generated_tokens: int
    preempted: int  # times a request gave its pages up to an older one


class Ticket:
    """A submitted request."""

    request_id: int

    def cancel(self) -> None:
        """End the request within one step. From any thread, any number of times."""
        raise NotImplementedError


class Engine:
    """Continues requests together, each as if it were alone."""

    config: EngineConfig

    def __init__(self, model: Decoder, eos_ids: Set[int], config: EngineConfig) -> None:
        """Plan the cache and start the thread. Errors: ConfigError where memory cannot be had."""
        raise NotImplementedError

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue a request; returns at once. From any thread.

        listener gets the request's events, the last of which is `Finished`, from the engine's
        thread: it must neither block nor raise.
        Errors, before anything is queued: ConfigError for an empty prompt or an id outside the
        vocabulary; ContextLengthError; QueueFullError; HybridMoeError after `close`.
        """
        raise NotImplementedError

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (T, V) of every position of a sequence, from scratch and into no cache."""
        raise NotImplementedError

    def save(self, path: Path, token_ids: Sequence[int], fingerprint: str) -> int:
        """Write what the cache holds of a sequence's beginning; returns how many tokens."""
        raise NotImplementedError

    def restore(self, path: Path, fingerprint: str) -> list[int]:
        """Put a saved sequence's latents back in the cache; returns its token ids."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel everything and end the thread. Any number of times."""
        raise NotImplementedError

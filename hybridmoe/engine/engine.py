"""Continuous batching of requests on one model, in a thread of its own.

Any thread submits requests; events come back from the engine's thread, which owns all state.
Between two steps it queues new requests, finishes cancelled ones, and runs calls that need the KV
cache to themselves (`save`, `restore`) or the model (`logits`).
"""

import weakref
from collections.abc import Callable, Set
from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from hybridmoe.config import EngineConfig
from hybridmoe.engine.engine_thread import EngineThread
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_snapshot import restore_snapshot, save_snapshot
from hybridmoe.engine.request import Listener, Request
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.stats import EngineStats
from hybridmoe.errors import ConfigError, ContextLengthError
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.model.decoder import Decoder
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["Engine", "RequestHandle"]


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
    """Runs requests in one batch, on which results do not depend but by `Expansion`.

    Ends by `close` or when dropped.
    """

    def __init__(
        self,
        model: Decoder,
        eos_ids: Set[int],
        config: EngineConfig,
        writer: TraceWriter | None = None,
        fingerprint: str = "",
    ) -> None:
        """Plan the KV cache and start the thread.

        writer: gets the routing of every step; closed by the caller, after the engine.
        fingerprint: of what computes the KV cache; with `kv_disk`, engines share pages by it.
        Errors: ConfigError if the KV cache does not fit in memory, or `kv_disk` holds too little.
        """
        self.config = config
        self.kv_plan = plan_kv(model.config, config, psutil.virtual_memory().available)
        self._vocab_size = model.config.vocab_size
        cache = KvCache(model.config, self.kv_plan, model.devices)
        model.use_graphs(cache.layers)
        self._thread = EngineThread(model, eos_ids, config, cache, writer, fingerprint)
        self._finalizer = weakref.finalize(self, self._thread.stop)

    def submit(self, request: Request, listener: Listener) -> RequestHandle:
        """Queue a request and return at once. From any thread.

        listener: called from the engine's thread with the request's events, `Finished` last; must
        neither block nor raise.
        Errors, before anything is queued: ConfigError for an empty prompt or an id outside the
        vocabulary; ContextLengthError; QueueFullError; DeviceError after the GPU has failed;
        ClusterError while a host with experts is away; HybridMoeError after `close`, or in a forked
        process.
        """
        self._thread.check_device()
        self._check(request.prompt_ids)
        constraint = request.constraint
        if request.params.ignore_eos and constraint is not None and not constraint.is_inactive():
            raise ConfigError("ignore_eos=True: expected False where the output is constrained")
        sequence = Sequence(request, listener, self._vocab_size, self.config.context_tokens)
        self._thread.add(sequence)
        return RequestHandle(sequence, self._thread.wake)

    @property
    def device_failure(self) -> str | None:
        """Error that ended all computation, in one line; None if there was none."""
        return self._thread.device_failure

    @property
    def outage(self) -> str | None:
        """Line on a host with some of the experts that is away for now; None if all are there."""
        return self._thread.outage

    @property
    def is_forked(self) -> bool:
        """True in a process forked after the engine started, which cannot compute."""
        return self._thread.is_forked

    def stats(self) -> EngineStats:
        """Statistics of about now. From any thread."""
        return self._thread.stats()

    def logits(self, token_ids: Items[int]) -> NDArray[np.float32]:
        """Compute the logits (T, V) of all positions, without the prefix cache.

        Errors: those of `submit`; NonFiniteError.
        """
        ids = list(token_ids)
        self._check(ids)
        return self._thread.call(lambda: self._thread.logits(ids))

    def save(self, path: Path, token_ids: Items[int], fingerprint: str) -> int:
        """Save the longest cached prefix of a sequence. Returns its number of tokens.

        fingerprint: identifies the model; `restore` refuses another one. Errors: OSError.
        """
        ids = list(token_ids)
        cache = self._thread.cache
        return self._thread.call(lambda: save_snapshot(path, ids, cache, fingerprint))

    def restore(self, path: Path, fingerprint: str) -> list[int]:
        """Restore a saved prefix into the prefix cache. Returns its token ids.

        Another kv_type is converted. Errors: ConfigError for a file that is damaged, of another
        model, or larger than the free KV cache; OSError.
        """
        cache = self._thread.cache
        return self._thread.call(
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

"""Experts in RAM over experts in the file: an executor for models that are larger than memory.

A policy says who stays. What is missing is read, all of a layer's at once, while what is there
computes; what may not stay is read into a spare buffer, computed and dropped, so that a step needs
no more memory than the plan gave. The order of every sum, and so every bit of the result, is that
of `CpuExperts`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.pending import Pending, Ready
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.expert_store import ExpertStore
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.policy import PREFILL_TOKENS, Policy, make_policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertCounters, ExpertStats
from hybridmoe.kernels.incremental_expert_ffn import IncrementalExpertFfn
from hybridmoe.planning.disk_cache_plan import TierPlan

__all__ = ["CachedExperts"]


class CachedExperts(ExpertBackend):
    """One thread's, but for `stats`."""

    def __init__(
        self,
        experts: RoutedExperts,
        layout: ExpertLayout,
        reader: FileReader,
        plan: TierPlan,
        policy: Policy | None = None,
    ) -> None:
        """experts: types and shapes; their data are not read. policy: None = the default.

        The reader is closed with this. Errors: ConfigError where there is no memory.
        """
        self.plan = plan
        self._layers, self._index_of = experts.by_index, experts.index_of
        self._num_experts = experts.num_experts
        shape = experts.cache_shape(plan.num_slots)
        self._num_keys = shape.num_keys
        self._policy = policy or make_policy("lru", shape)
        self._reader = reader
        self._store = ExpertStore(layout, reader, plan.num_buffers)
        self._pass = IncrementalExpertFfn()
        self._resident: set[int] = set()  # as the policy has it; keys
        self._guesses: dict[int, list[int]] = {}  # layer -> keys that the layer before guessed
        self._ahead: dict[int, None] = {}  # keys that are read for it
        self._counters = ExpertCounters()
        self.uses = np.zeros(self._num_keys, np.int64)  # accesses by key

    @property
    def reads(self) -> str:
        """How the file is read, for people."""
        return self._reader.engine

    @property
    def wants_prefetch_hints(self) -> bool:
        return self.plan.num_ahead > 0

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Take a hint, on which the next `submit` reads; see `ExpertBackend.prefetch`.

        Hints for prefill are ignored.
        """
        if ids.shape[0] <= PREFILL_TOKENS:
            index = self._index_of[layer]
            first = index * self._num_experts
            guess = dict.fromkeys(ids.t().flatten().tolist())
            self._guesses = {**self._guesses, index: [first + e for e in guess if e >= 0]}

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """As `ExpertBackend.submit`; computed at once.

        Errors: DiskError where an expert cannot be read; the next call tries again.
        """
        index = self._index_of[layer]
        first = index * self._num_experts
        table = self._store.addresses[index]
        order, num_free = self._pass.begin(x, ids, weights, self._layers[index], table)
        self._note_access(index, ids)
        try:
            self._compute([first + e for e in order], num_free, first)
        except BaseException:
            self._guesses = {}
            for expert in order:
                self._drop_passer_by(first + expert)
            self._store.drain()
            raise
        return Ready(self._pass.finish())

    def load_hot(self, keys: NDArray[np.int64], progress: Callable[[int], None]) -> int:
        """Make keys resident, the most valuable first, and read them; how many stay.

        Calls progress(bytes) as they come. Errors: DiskError.
        """
        self._policy.warm(keys)
        self._resident = set(self._policy.resident().tolist())
        self._store.load(sorted(self._resident), progress)
        return len(self._resident)

    def resident(self) -> NDArray[np.int64]:
        """The keys that stay, ascending."""
        return np.array(sorted(self._resident), np.int64)

    def stats(self) -> ExpertStats:
        """The figures of about now. From any thread."""
        counters = self._counters.copy()
        counters.bytes_read = self._store.bytes_read
        counters.read_wait_s = self._store.wait_s
        return ExpertStats(
            num_slots=self.plan.num_slots,
            num_resident=len(self._resident),
            num_experts=self._num_keys,
            buffer_bytes=self.plan.buffer_bytes,
            counters=counters,
        )

    def close(self) -> None:
        """End the reads. Any number of times."""
        self._reader.close()

    def _note_access(self, index: int, ids: Tensor) -> None:
        """Let the policy decide, and count."""
        chosen = dict.fromkeys(ids.flatten().tolist())
        chosen.pop(-1, None)
        experts = np.fromiter(chosen, np.int32, len(chosen))
        first = index * self._num_experts
        decision = self._policy.on_access(index, experts, ids.shape[0] > PREFILL_TOKENS)
        counters = self._counters
        counters.note(decision)
        self.uses[first + experts] += 1
        self._resident.difference_update(decision.evicted.tolist())
        self._resident.update((first + decision.admitted).tolist())
        for key in decision.evicted.tolist():
            self._store.release(key)
        guess = self._guesses.pop(index, None)
        if guess is not None:
            counters.expected += len(experts)
            counters.expected_right += len(chosen.keys() & {key - first for key in guess})
        missed = set((first + experts[~decision.hits]).tolist())
        ahead, self._ahead = self._ahead, {}
        for key in ahead:
            if key in missed:
                counters.ahead_used += 1
            elif key not in self._resident and self._store.release(key):
                counters.ahead_reads -= 1  # it had not begun

    def _compute(self, keys: Sequence[int], num_free: int, first: int) -> None:
        """Compute experts as they come: the first `num_free` in any order, the others in theirs."""
        store = self._store
        free = dict.fromkeys(keys[:num_free])
        rest = deque(keys[num_free:])
        store.settle(wait=False)  # reads ahead; one that failed is requested again
        requests = deque(key for key in keys if not store.is_there(key))
        self._request(requests)
        self._read_ahead()
        while free or rest:
            ready = self._ready(free or rest, is_free=bool(free), more=bool(requests))
            if ready:
                self._pass.compute([key - first for key in ready])
                for key in ready:
                    if free:
                        del free[key]
                    else:
                        rest.popleft()
                    self._drop_passer_by(key)
            for key, error in store.settle(wait=not ready).items():
                if error is not None and (key in free or key in rest):
                    raise error
            self._request(requests)

    def _ready(self, keys: Iterable[int], *, is_free: bool, more: bool) -> list[int]:
        """Of the experts whose turn it is or comes next, those that are there.

        Where more have to be read than there is room for, half of the room at a time, so that the
        other half is read meanwhile.
        """
        most_passers_by = max(1, self.plan.num_staging // 2) if more else self._num_keys
        ready: list[int] = []
        for key in keys:
            if self._store.is_there(key):
                most_passers_by -= key not in self._resident
                if most_passers_by < 0:
                    break
                ready.append(key)
            elif not is_free:
                break
        return ready

    def _request(self, requests: deque[int]) -> None:
        while requests and self._store.request(requests[0]):
            requests.popleft()

    def _read_ahead(self) -> None:
        """Ask for the likeliest missing experts of the next layer; after all that is needed now."""
        for key in (key for guess in self._guesses.values() for key in guess):
            if len(self._ahead) >= self.plan.num_ahead:
                return
            if self._store.is_there(key) or self._store.is_coming(key):
                continue
            if not self._store.request(key, is_urgent=False):
                return
            self._ahead[key] = None
            self._counters.ahead_reads += 1

    def _drop_passer_by(self, key: int) -> None:
        if key not in self._resident:
            self._store.release(key)

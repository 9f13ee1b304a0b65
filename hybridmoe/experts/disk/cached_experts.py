"""Expert offload to disk: a RAM cache of routed experts, read from the GGUF file on a miss.

A policy decides which experts stay. All misses of a layer are requested at once and read while its
hits compute. Uncached experts are read into a staging buffer, computed and released, so that a step
takes no more memory than planned. Sums are in the order of `CpuExperts`, and so equal bit for bit.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import DiskError, StalledReadError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.expert_store import ExpertStore
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.prompt_pass import PromptPass
from hybridmoe.experts.policy import Policy, make_policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertCounters, ExpertStats
from hybridmoe.kernels.incremental_expert_ffn import IncrementalExpertFfn
from hybridmoe.planning.disk_cache_plan import DiskCachePlan

__all__ = ["CachedExperts"]


class CachedExperts(ExpertBackend):
    """Backend for models larger than RAM. Not thread-safe, except `stats`."""

    def __init__(
        self,
        experts: RoutedExperts,
        layout: ExpertLayout,
        reader: FileReader,
        plan: DiskCachePlan,
        policy: Policy | None = None,
    ) -> None:
        """experts: types and shapes; their data is not read. reader: closed with this.

        policy: None = the default. Errors: ConfigError without memory for the buffers.
        """
        self.plan = plan
        self._layers, self._index_of = experts.by_index, experts.index_of
        self._num_experts = experts.num_experts
        shape = experts.cache_shape(plan.num_slots)
        self._num_keys = shape.num_keys
        self._policy = policy or make_policy("lru", shape)
        self._reader = reader
        self._store = ExpertStore(layout, reader, plan.num_buffers)
        self._ffn = IncrementalExpertFfn()
        self._prompt = PromptPass(
            self,
            self._ffn,
            shape.num_layers,
            shape.num_experts,
            shape.top_k,
            plan.num_staging,
        )
        self._resident: set[int] = set()  # keys that the policy keeps, loaded or in flight
        self._hints: dict[int, list[int]] = {}  # layer index -> keys of the last prefetch hint
        self._prefetched: dict[int, None] = {}  # keys requested on a hint, in order
        self._counters = ExpertCounters()
        self.uses = np.zeros(self._num_keys, np.int64)  # accesses by key

    @property
    def read_backend(self) -> str:
        """Description of the file reads, for users."""
        return self._reader.backend

    @property
    def wants_prefetch_hints(self) -> bool:
        return self.plan.num_ahead > 0

    @property
    def buffers_in_use(self) -> int:
        """Buffers of experts that are loaded or in flight, uncached ones included."""
        return self._store.num_loaded + self._store.num_in_flight

    @property
    def buffers_free(self) -> int:
        return self._store.num_free

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask this while computation waits for reads; see `ExpertBackend.abandon_when`."""
        self._store.is_unwanted = is_unwanted

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Take a hint, on which the next `submit` reads; see `ExpertBackend.prefetch`.

        Hints for prefill are ignored.
        """
        if ids.shape[0] <= PREFILL_TOKENS:
            index = self._index_of[layer]
            first_key = index * self._num_experts
            hint = dict.fromkeys(ids.t().flatten().tolist())
            self._hints = {**self._hints, index: [first_key + e for e in hint if e >= 0]}

    def begin_step(self, num_tokens: int) -> None:
        """Begin the reads of a long step."""
        self._prompt.begin_step(num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Compute at once; see `ExpertBackend.submit`.

        Errors: DiskError if an expert cannot be read; StalledReadError. The next call tries again.
        """
        index = self._index_of[layer]
        first_key = index * self._num_experts
        addresses = self._store.addresses[index]
        order, num_free = self._ffn.begin(x, ids, weights, self._layers[index], addresses)
        self._note_access(index, ids)
        try:
            if len(ids) > PREFILL_TOKENS:
                self._prompt.compute(index, order, num_free)
            else:
                self._compute([first_key + e for e in order], num_free, first_key)
        except BaseException as error:
            self._hints = {}
            self._prompt.discard()
            for expert in order:
                self.release(first_key + expert)
            if not isinstance(error, StalledReadError):  # its reads keep their buffers until then
                self._store.drain()
            raise
        return Ready(self._ffn.finish())

    # What a long step needs of the cache: see `prompt_pass.ExpertSource`.

    def is_loaded(self, key: int) -> bool:
        return self._store.is_loaded(key)

    def is_in_flight(self, key: int) -> bool:
        return self._store.is_in_flight(key)

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        return self._store.request(key, is_urgent=is_urgent)

    def release(self, key: int) -> bool:
        return key not in self._resident and self._store.release(key)

    def collect(self, *, wait: bool) -> Mapping[int, DiskError | None]:
        return self._store.collect(wait=wait)

    def load_hot(self, keys: NDArray[np.int64], progress: Callable[[int], None]) -> int:
        """Make keys resident, hottest first, and load them. Returns how many fit.

        Calls progress(bytes) as they arrive. Errors: DiskError.
        """
        self._policy.warm(keys)
        self._resident = set(self._policy.resident().tolist())
        self._store.load(sorted(self._resident), progress)
        return len(self._resident)

    def resident(self) -> NDArray[np.int64]:
        """Resident keys, ascending."""
        return np.array(sorted(self._resident), np.int64)

    def stats(self) -> ExpertStats:
        counters = self._counters.copy()
        counters.bytes_read = self._store.bytes_read
        counters.read_wait_s = self._store.wait_s
        counters.prefetched += self._prompt.read_ahead.num_read
        counters.prefetched_used += self._prompt.read_ahead.num_used
        return ExpertStats(
            num_slots=self.plan.num_slots,
            num_resident=len(self._resident),
            num_experts=self._num_keys,
            buffer_bytes=self.plan.buffer_bytes,
            counters=counters,
        )

    def close(self) -> None:
        """End the reads. Idempotent."""
        self._reader.close()

    def _note_access(self, index: int, ids: Tensor) -> None:
        """Apply the policy's decision about a layer's experts, and count."""
        chosen = dict.fromkeys(ids.flatten().tolist())
        chosen.pop(-1, None)
        experts = np.fromiter(chosen, np.int32, len(chosen))
        first_key = index * self._num_experts
        decision = self._policy.on_access(index, experts, ids.shape[0] > PREFILL_TOKENS)
        counters = self._counters
        counters.note(decision)
        self.uses[first_key + experts] += 1
        self._resident.difference_update(decision.evicted.tolist())
        self._resident.update((first_key + decision.admitted).tolist())
        for key in decision.evicted.tolist():
            self._store.release(key)
        hint = self._hints.pop(index, None)
        if hint is not None:
            counters.hinted += len(experts)
            counters.hinted_right += len(chosen.keys() & {key - first_key for key in hint})
        missed = set((first_key + experts[~decision.hits]).tolist())
        prefetched, self._prefetched = self._prefetched, {}
        for key in prefetched:
            if key in missed:
                counters.prefetched_used += 1
            elif key not in self._resident and self._store.release(key):
                counters.prefetched -= 1  # cancelled before it was read

    def _compute(self, keys: Sequence[int], num_free: int, first_key: int) -> None:
        """Compute experts as they arrive: the first `num_free` in any order, the rest in theirs."""
        store = self._store
        free = dict.fromkeys(keys[:num_free])
        rest = deque(keys[num_free:])
        store.collect(wait=False)  # prefetches; a failed one is requested again
        to_request = deque(key for key in keys if not store.is_loaded(key))
        self._request(to_request)
        self._request_prefetches()
        while free or rest:
            ready = self._ready(free or rest, is_free=bool(free), more=bool(to_request))
            if ready:
                self._ffn.compute([key - first_key for key in ready])
                for key in ready:
                    if key in to_request:  # prefetched, and in flight while others had no buffer
                        to_request.remove(key)
                    if free:
                        del free[key]
                    else:
                        rest.popleft()
                    self.release(key)
            for key, error in store.collect(wait=not ready).items():
                if error is not None and (key in free or key in rest):
                    raise error
            self._request(to_request)

    def _ready(self, keys: Iterable[int], *, is_free: bool, more: bool) -> list[int]:
        """List the loaded experts that may be computed next.

        more: reads wait for a free buffer. Then at most half of the staging buffers' experts are
        taken, so that the other half is read meanwhile.
        """
        uncached_left = max(1, self.plan.num_staging // 2) if more else self._num_keys
        ready: list[int] = []
        for key in keys:
            if self._store.is_loaded(key):
                uncached_left -= key not in self._resident
                if uncached_left < 0:
                    break
                ready.append(key)
            elif not is_free:
                break
        return ready

    def _request(self, keys: deque[int]) -> None:
        """Request keys from the left while buffers are free."""
        while keys and self._store.request(keys[0]):
            keys.popleft()

    def _request_prefetches(self) -> None:
        """Request the likeliest misses of hinted layers, behind all urgent reads."""
        for key in (key for hint in self._hints.values() for key in hint):
            if len(self._prefetched) >= self.plan.num_ahead:
                return
            if self._store.is_loaded(key) or self._store.is_in_flight(key):
                continue
            if not self._store.request(key, is_urgent=False):
                return
            self._prefetched[key] = None
            self._counters.prefetched += 1

"""Expert offload to disk: a RAM cache of routed experts, read from the GGUF file on a miss.

The work is native (`_C.RamExperts`), but for the order of reads in long steps: a policy decides
which experts stay; all misses of a layer are requested at once and read while its hits compute.
Uncached experts are read into a staging buffer, computed and released, so that a step takes no more
memory than planned. Sums are in the order of `CpuExperts`, and so equal bit for bit.
"""

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import DiskError, StalledReadError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.prompt_pass import ExpertProducts, PromptPass
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import TIERS, ExpertCounters, ExpertStats
from hybridmoe.kernels.incremental_expert_ffn import IncrementalExpertFfn
from hybridmoe.kernels.ops import check_routing
from hybridmoe.planning.disk_cache_plan import DiskCachePlan

__all__ = ["STALL_S", "CachedExperts"]

STALL_S = 2.0  # without any read: the disk hangs, or a network


class CachedExperts(ExpertBackend):
    """Backend for models larger than RAM. Not thread-safe, except `stats`."""

    def __init__(
        self,
        experts: RoutedExperts,
        layout: ExpertLayout,
        reader: FileReader,
        plan: DiskCachePlan,
        num_ahead: int = 0,
    ) -> None:
        """experts: types and shapes; their data is not read. reader: closed with this.

        num_ahead: experts read ahead on hints, where the plan has no buffers of their own: in those
        for streamed experts.
        Errors: ConfigError without memory for the buffers.
        """
        assert 0 <= num_ahead <= plan.least_staging - plan.top_k, (num_ahead, plan)
        self.plan = plan
        self._num_ahead = plan.num_ahead + num_ahead
        self._layers, self._index_of = experts.by_index, experts.index_of
        self._num_experts = experts.num_experts
        self._num_keys = experts.num_layers * experts.num_experts
        self._reader = reader
        self.uses = np.zeros(self._num_keys, np.int64)  # accesses by key
        self._was_away = np.zeros((experts.num_layers, experts.num_experts), np.uint8)
        arena = Arena(plan.num_bytes)
        reader.keep_alive(arena)
        starts = accumulate((pool.num_bytes for pool in plan.pools), initial=arena.address)
        self.native = _C.RamExperts(
            reader.native,
            [
                (start, pool.num_slots, pool.num_staging - num_ahead, pool.part_bytes)
                for start, pool in zip(starts, plan.pools, strict=False)
            ],
            [
                ([w.handle for w in weights], plan.pool_of_layer[index], layout.parts(index))
                for index, weights in enumerate(self._layers)
            ],
            num_ahead=self._num_ahead,
            num_leaving=plan.num_leaving,
            decode_tokens=PREFILL_TOKENS,
            uses=self.uses.ctypes.data,
            was_away=self._was_away.ctypes.data,
        )
        self.abandon_when(lambda: False)
        self._addresses = self._view_addresses()
        self._ffn = IncrementalExpertFfn()
        self.prompt = PromptPass(
            self,
            experts.num_layers,
            experts.num_experts,
            experts.top_k,
            plan.least_staging,
        )

    @property
    def read_backend(self) -> str:
        """Description of the file reads, for users."""
        return self._reader.backend

    @property
    def wants_prefetch_hints(self) -> bool:
        return self._num_ahead > 0

    @property
    def buffers_in_use(self) -> int:
        """Buffers of experts that are loaded or in flight, uncached ones included."""
        return self.plan.num_buffers - self.buffers_free

    @property
    def buffers_free(self) -> int:
        return self.native.num_free_buffers

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask this while computation waits for reads; see `ExpertBackend.abandon_when`."""
        self._is_unwanted = is_unwanted
        here = weakref.ref(self)  # the collector does not see what native code refers to

        def ask() -> bool:
            experts = here()
            return experts is None or experts._is_unwanted()

        self.native.abandon_when(ask, STALL_S)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Take a hint, on which the next `submit` reads; see `ExpertBackend.prefetch`.

        Hints for prefill are ignored.
        """
        if ids.shape[0] <= PREFILL_TOKENS:
            index = self._index_of[layer]
            hint = dict.fromkeys(ids.t().flatten().tolist())
            self.native.hint(index, [index * self._num_experts + e for e in hint if e >= 0])

    def begin_step(self, num_tokens: int) -> None:
        """Begin the reads of a long step."""
        self.prompt.begin_step(num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Compute at once; see `ExpertBackend.submit`.

        Errors: DiskError if an expert cannot be read; StalledReadError. The next call tries again.
        """
        index = self._index_of[layer]
        try:
            if len(ids) > PREFILL_TOKENS:
                return Ready(self._compute_prompt(index, x, ids, weights))
            return Ready(self._compute(index, x, ids, weights))
        finally:
            self._reader.report()

    def _compute(self, index: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        tokens, top_k = check_routing(x, ids, weights, self._layers[index].gate.cols)
        out = torch.empty_like(x)  # (T, H)
        self.native.compute(
            index, x.data_ptr(), ids.data_ptr(), weights.data_ptr(), tokens, top_k, out.data_ptr()
        )
        return out

    def _compute_prompt(self, index: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        matrices, addresses = self._layers[index], self._addresses[index]
        order, num_free = self._ffn.begin(x, ids, weights, matrices, addresses)
        products = _CpuProducts(self._ffn, index * self._num_experts)
        self.stream(index, ids, order, num_free, products)
        return self._ffn.finish()

    def stream(
        self,
        index: int,
        ids: Tensor,
        experts: Sequence[int],
        num_free: int,
        products: ExpertProducts,
    ) -> None:
        """Note a long step's access of a layer, and pass experts to their products as they come.

        ids: (T, K) int32, on the CPU. experts, num_free: as for `PromptPass.compute`.
        Errors: DiskError, StalledReadError; the next call tries again.
        """
        self.native.access(index, ids.data_ptr(), ids.numel(), is_prefill=True)
        try:
            self.prompt.compute(index, experts, num_free, products)
        except BaseException as error:
            self.native.forget_hints()
            self.prompt.discard()
            for expert in experts:
                self.release(index * self._num_experts + expert)
            if not isinstance(error, StalledReadError):  # its reads keep their buffers until then
                self.native.drain()
            raise
        finally:
            self._reader.report()

    # What a long step needs of the cache: see `prompt_pass.ExpertSource`.

    def is_loaded(self, key: int) -> bool:
        return self.native.is_loaded(key)

    def is_in_flight(self, key: int) -> bool:
        return self.native.is_in_flight(key)

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        return self.native.request(key, is_urgent)

    def release(self, key: int) -> bool:
        return self.native.release(key)

    def collect(self, *, wait: bool) -> Mapping[int, DiskError | None]:
        ended = self.native.wait() if wait else self.native.poll()
        return {key: None if error is None else DiskError(error) for key, error in ended}

    def load_hot(self, keys: NDArray[np.int64], progress: Callable[[int], None]) -> int:
        """Make keys resident, hottest first, and load them. Returns how many fit.

        Calls progress(bytes) as they arrive. Errors: DiskError.
        """
        return self.native.warm(keys.tolist(), progress)

    def resident(self) -> NDArray[np.int64]:
        """Resident keys, ascending."""
        return np.array(self.native.resident(), np.int64)

    def tiers(self, ids: NDArray[np.int16], first: int = 0) -> NDArray[np.uint8]:
        """See `ExpertBackend.tiers`. first: index of the layer that `ids` begins with."""
        layers = first + np.arange(ids.shape[1])[:, None]
        return np.uint8(TIERS.index("RAM")) + self._was_away[layers, ids]

    def stats(self) -> ExpertStats:
        counters = ExpertCounters(**self.native.counters())  # type: ignore[arg-type]
        counters.prefetched += self.prompt.read_ahead.num_read
        counters.prefetched_used += self.prompt.read_ahead.num_used
        return ExpertStats(
            num_slots=self.plan.num_slots,
            num_resident=self.native.num_resident,
            num_experts=self._num_keys,
            buffer_bytes=self.plan.buffer_bytes,
            counters=counters,
        )

    def close(self) -> None:
        """End the reads. Idempotent."""
        self._reader.close()

    def _view_addresses(self) -> NDArray[np.int64]:
        """Addresses (L, 3, E) of each expert's gate, up and down, 0 = not loaded: native's own."""
        table = (ctypes.c_int64 * (3 * self._num_keys)).from_address(
            self.native.addresses_of_layer(0)
        )
        return np.frombuffer(memoryview(table), np.int64).reshape(
            len(self._layers), 3, self._num_experts
        )


class _CpuProducts:
    """`ExpertProducts` of one layer on the CPU, which end before `compute` returns."""

    def __init__(self, ffn: IncrementalExpertFfn, first_key: int) -> None:
        """ffn: has begun."""
        self._ffn, self._first_key = ffn, first_key
        self._done: Sequence[int] = ()

    def compute(self, keys: Sequence[int]) -> None:
        self._ffn.compute([key - self._first_key for key in keys])
        self._done = keys

    def take_done(self, *, wait: bool) -> Sequence[int]:
        done, self._done = self._done, ()
        return done

"""A card that is a clock: VRAM slots over RAM slots and a file, on a machine without a GPU.

What is where is decided by the library, and bytes move through its buffers; the link and the card's
kernels take the time that their rates say. The CPU computes its experts; the card's are missing in
the sum, as long as nothing but time counts, or computed by the CPU too (`is_exact`).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import DiskError, HybridMoeError, StalledReadError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.expert_cache import GpuExpertCache
from hybridmoe.experts.gpu.ram_tier import RamTier
from hybridmoe.experts.gpu.staging import CallMemory
from hybridmoe.experts.policy import Policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertStats

__all__ = ["CardRates", "SimulatedCard"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class CardRates:
    """Rates of a card. The defaults take no time."""

    vram: float = float("inf")  # bytes per second of experts that are computed there
    link: float = float("inf")
    dense_s: float = 0.0  # of a layer, before its experts


class SimulatedCard(ExpertBackend):
    """VRAM slots, and the RAM tier below. Not thread-safe."""

    def __init__(
        self,
        ram: CachedExperts,
        experts: RoutedExperts,
        num_slots: int,
        rates: CardRates | None = None,
        *,
        uploads_per_step: int = 1,
        policy: Policy | None = None,
        is_exact: bool = False,
        slots: NDArray[np.uint8] | None = None,
        arrives: Callable[[], bool] = lambda: True,
    ) -> None:
        """ram: closed with this. slots: (slots, bytes), filled by uploads; None = bytes are lost.

        arrives: asked before an upload that the link has had time for arrives.
        """
        self.ram, self._experts, self._rates = ram, experts, rates or CardRates()
        self._is_exact, self.slots = is_exact, slots
        self.tier = RamTier(ram, experts)
        self._link = _Link(self.tier, experts, self._rates.link, slots, arrives)
        self.cache = GpuExpertCache(
            experts.cache_shape(num_slots),
            self._link,
            _NoStream(),
            _CPU,
            uploads_per_step=uploads_per_step,
            policy=policy,
            below=self.tier,
        )
        self._x = torch.zeros(PREFILL_TOKENS, experts.hidden)
        self._out = torch.zeros_like(self._x)
        self._ids = torch.zeros(PREFILL_TOKENS, experts.top_k, dtype=torch.int32)
        self._weights = torch.zeros(PREFILL_TOKENS, experts.top_k)
        memory = CallMemory(
            self._x.data_ptr(),
            self._ids.data_ptr(),
            self._weights.data_ptr(),
            self._out.data_ptr(),
            PREFILL_TOKENS,
            experts.top_k,
        )
        table = self.cache.table.numpy()
        self._calls = [
            self.tier.make_call(index, memory, 0 if is_exact else table[index].ctypes.data)
            for index in range(experts.num_layers)
        ]
        self._accesses: list[tuple[int, NDArray[np.int32]]] = []
        self._num_tokens = 0

    def begin_step(self, num_tokens: int) -> None:
        self._num_tokens, self._accesses = num_tokens, []
        self.cache.begin_step()
        self.ram.begin_step(num_tokens)
        self.tier.begin_step()

    @property
    def wants_prefetch_hints(self) -> bool:
        return self.ram.wants_prefetch_hints

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self.ram.prefetch(layer, ids)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Compute at once. Errors: DiskError, StalledReadError."""
        _pass(self._rates.dense_s)
        index, chosen = self._experts.index_of[layer], dict.fromkeys(ids.flatten().tolist())
        chosen.pop(-1, None)
        self._accesses.append((index, np.fromiter(chosen, np.int32, len(chosen))))
        if len(x) > PREFILL_TOKENS:
            return self.ram.submit(layer, x, ids, weights)
        table = self.cache.table.numpy()[index]
        busy = sum(table[e] >= 0 for e in chosen) * self._link.bytes_of[index] / self._rates.vram
        end_s = time.perf_counter() + busy
        out = self._compute(index, x, ids, weights)
        _pass(end_s - time.perf_counter())
        return Ready(out)

    def end_step(self) -> None:
        is_prefill = self._num_tokens > PREFILL_TOKENS
        self.cache.end_step(self._accesses, is_prefill=is_prefill)

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        return self.cache.tiers(ids, self.tier.tiers(ids))

    def stats(self) -> ExpertStats:
        return self.cache.stats()

    def close(self) -> None:
        self.cache.close()
        self.ram.close()

    def _compute(self, index: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Compute the CPU's experts of a layer."""
        tokens, call = len(x), self._calls[index]
        for into, given in ((self._x, x), (self._ids, ids), (self._weights, weights)):
            into[:tokens] = given
        call.num_tokens = tokens
        call.run()
        if (error := call.take_error()) is not None:
            kinds = {"read": DiskError, "stall": StalledReadError}
            raise kinds.get(self.ram.native.take_failure(), HybridMoeError)(error)
        return self._out[:tokens].clone()


def _pass(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


@dataclass(slots=True, eq=False)
class _Upload:
    """An expert on its way; its bytes are taken as late as possible: when it arrives."""

    parts: Sequence[NDArray[np.uint8]]
    into: NDArray[np.uint8] | None
    num_left: float
    error: Exception | None = field(default=None)
    is_over: bool = False

    def is_done(self) -> bool:
        return self.is_over

    def cancel(self) -> None:
        self.is_over = True

    def arrive(self) -> None:
        if self.into is not None and not self.is_over:
            joined = np.concatenate(self.parts)
            self.into[: len(joined)] = joined
        self.is_over = True


class _Link:
    """`Uploader` at a given rate."""

    def __init__(
        self,
        tier: RamTier,
        experts: RoutedExperts,
        rate: float,
        slots: NDArray[np.uint8] | None,
        arrives: Callable[[], bool],
    ) -> None:
        self.bytes_of = [sum(weights.matrix_bytes) for weights in experts.by_index]
        self.slot_bytes = max(self.bytes_of)
        self._tier, self._rate, self._slots, self._arrives = tier, rate, slots, arrives
        self._queue: deque[_Upload] = deque()
        self._asked_s = time.perf_counter()

    def begin(self, layer_index: int, expert: int, slot: int) -> _Upload:
        into = None if self._slots is None else self._slots[slot]
        parts = self._tier.bytes_of(layer_index, expert)
        upload = _Upload(parts, into, float(self.bytes_of[layer_index]))
        self._queue.append(upload)
        return upload

    def advance(self, num_bytes: int) -> None:
        now = time.perf_counter()
        passed, self._asked_s = max(1e-9, now - self._asked_s), now
        budget = passed * self._rate
        while self._queue and budget > 0:
            upload = self._queue[0]
            if not upload.is_over:
                sent = min(upload.num_left, budget)
                upload.num_left -= sent
                budget -= sent
                if upload.num_left > 0 or not self._arrives():
                    return
                upload.arrive()
            self._queue.popleft()

    def close(self) -> None:
        self._queue.clear()


class _Event:
    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return


class _NoStream:
    """`Stream` that does copies at once."""

    is_captured = False

    def copy(self, dst: Tensor, src: Tensor) -> None:
        dst.copy_(src)

    def record(self) -> _Event:
        return _Event()

    def wait_for(self, other: object) -> None:
        return

    def synchronize(self) -> None:
        return

"""Hybrid expert backend: the GPU computes the experts in its VRAM slots, the CPU all others.

The CPU finds its experts in the memory map, or in the RAM tier, which reads what is missing from
the file. Both sides work on a layer at once. The main stream computes on the GPU, while a second
one copies states and routing to the host, calls the CPU's kernels, and copies their sum back; in a
graph, `HandOver` takes the second one's place. A decode step only queues work, the same whatever is
resident, so that a CUDA graph can repeat it. The step's routing is read once all of it is on the
host, and passed to the cache: after the step, or with hand-overs while the GPU computes the output
head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.device.pending import Pending
from hybridmoe.device.streams import Event, Stream
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.backend import ExpertBackend, HostCallTime
from hybridmoe.experts.gpu.staging import StagedSubmission, StepMemory
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertStats

if TYPE_CHECKING:
    from hybridmoe.experts.gpu.hand_over import HandOver
    from hybridmoe.experts.gpu.ram_tier import RamTier
    from hybridmoe.experts.gpu.slot_pool import SlotPool

__all__ = ["HybridExperts", "PrefillExecutor"]

# By layer index; None: a `PrefillExecutor` computes it
_Calls = dict[int, _C.HostCall | None]


class PrefillExecutor(Protocol):
    """Computes the experts of prefill steps."""

    def begin_step(self, num_tokens: int) -> None:
        """Begin a step; one that failed is discarded."""
        ...

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Start a layer; see `ExpertBackend.submit`."""
        ...

    def check(self) -> None:
        """Check a step that has ended. Errors: HybridMoeError."""
        ...

    def ready(self, wait_s: float) -> None:
        """Learn that the experts are in memory."""
        ...

    def close(self) -> None:
        """Stop threads and transfers. Idempotent."""
        ...


class HybridExperts(ExpertBackend):
    """Expert backend over a GPU and the CPU. Not thread-safe, except `stats`.

    A result must be taken before the next layer is submitted.
    """

    is_capturable = True

    def __init__(
        self,
        experts: RoutedExperts,
        main: Stream,
        host: Stream,
        device: torch.device,
        *,
        slots: "SlotPool | None" = None,
        prefill: PrefillExecutor | None = None,
        hand_over: "HandOver | None" = None,
        ram: "RamTier | None" = None,
    ) -> None:
        """main: stream of the steps. host: stream of the CPU's part. slots: experts in VRAM.

        hand_over: way to the CPU and back in captured steps; None = host functions, as elsewhere.
        prefill: for steps of more than 16 tokens; None = the CPU computes them. ram: tier of the
        experts that are not in slots; None = the memory map. slots, prefill and ram are closed with
        this.
        """
        self._experts, self._device = experts, device
        self._index_of = experts.index_of
        self._main, self._host = main, host
        self._slots, self._prefill = slots, prefill
        self._hand_over, self._ram = hand_over, ram
        self._decode_memory = StepMemory(
            PREFILL_TOKENS,
            experts,
            device,
            make_call=None if ram is None else ram.make_call,
        )
        self._prefill_memory: StepMemory | None = None  # allocated by the first prefill
        self._memory = self._decode_memory
        self._num_tokens = 0
        self._is_in_step = self._is_counted = False  # counted: the cache has seen the step
        self._is_trial = False
        self._error: str | None = None  # of this step's calls
        self._calls: _Calls = {}  # of this step
        # of graphs, by their number of tokens
        self._captured: dict[int, dict[int, _C.HostCall]] = {}

    def begin_step(self, num_tokens: int) -> None:
        """Start a step; see `ExpertBackend`. Errors: of an upload to the VRAM slots."""
        if self._is_in_step:  # a step that failed
            self._synchronize()
            self._take_errors()
            if self._prefill is not None:
                with suppress(HybridMoeError):
                    self._prefill.check()
            self._is_in_step = False
        self._num_tokens, self._calls = num_tokens, {}
        self._memory = self._memory_for(num_tokens)
        self._memory.reset()
        if self._ram is not None:
            self._ram.begin_step()
        if self._slots is not None:
            self._slots.cache.begin_step()
        if self._prefill is not None and num_tokens > PREFILL_TOKENS:
            self._prefill.begin_step(num_tokens)
        self._is_in_step, self._is_counted, self._error = True, False, None

    def end_step(self) -> None:
        """Wait for the CPU's part; see `ExpertBackend`. Errors: HybridMoeError."""
        self._synchronize()
        self._is_in_step = False
        if (error := self._error or self._take_errors()) is not None:
            raise self._as_error(error)
        if self._prefill is not None and self._num_tokens > PREFILL_TOKENS:
            self._prefill.check()
        if not self._is_counted:
            self._count()

    def replayed(self, layers: range) -> None:
        """Compute the CPU's part; see `ExpertBackend.replayed`. Errors: torch's, HybridMoeError."""
        numbers, captured = self._experts.numbers, self._captured.get(self._num_tokens, {})
        calls = {index: call for index, call in captured.items() if numbers[index] in layers}
        self._calls |= calls
        if self._hand_over is not None:
            self._hand_over.serve(list(calls.values()))
            self._error = self._error or self._take_errors()
            if len(self._calls) == len(captured) and self._error is None:
                self._count()  # while the GPU computes the output head

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Queue no call to the CPU but those of a graph; see `ExpertBackend.trial`."""
        self._is_trial = True
        try:
            yield
        finally:
            self._is_trial = False

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        if self._ram is not None:
            self._ram.abandon_when(is_unwanted)

    def stats(self) -> ExpertStats | None:
        below = None if self._ram is None else self._ram.stats()
        if self._slots is None:
            return below
        return replace(self._slots.cache.stats(), below=below)

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        below = super().tiers(ids) if self._ram is None else self._ram.tiers(ids)
        return below if self._slots is None else self._slots.cache.tiers(ids, below)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Queue a layer on the GPU; see `ExpertBackend.submit`. The inputs must not change.

        The result is the caller's until the next layer is submitted.
        Numeric: the CPU's part as `kernels.ops.expert_ffn`, the GPU's as that of kernels.triton,
        in float32; the two are added.
        """
        index, tokens, memory, host = self._index_of[layer], len(x), self._memory, self._host
        host_ids = memory.ids[index, :tokens]
        if self._main.is_captured and self._hand_over is not None:
            staged = self._staged(layer, tokens)
            self._hand_over.send(x, ids, weights, staged, host_ids)
            return self._hand_over.pending(staged, tokens, self._by_gpu(layer, x, ids, weights))
        host.wait_for(self._main)
        host.copy(host_ids, ids)
        if tokens > PREFILL_TOKENS and self._prefill is not None:
            self._calls[index] = None
            return self._prefill.submit(layer, x, ids, weights)
        staged = self._staged(layer, tokens)
        host.copy(staged.x[:tokens], x)
        host.copy(staged.weights[:tokens], weights)
        if self._main.is_captured or not self._is_trial:
            host.launch(self._call(layer, tokens))
        by_cpu = staged.result[:tokens]
        host.copy(by_cpu, staged.out[:tokens])
        returned = host.record()
        by_gpu = self._by_gpu(layer, x, ids, weights)
        return _HybridSum(self._main, staged, by_cpu, returned, by_gpu, (x, ids, weights))

    def host_call_times(self) -> list[HostCallTime]:
        numbers = self._experts.numbers
        return [
            HostCallTime(numbers[index], *call.times())
            for index, call in self._calls.items()
            if call is not None
        ]

    @property
    def prefill(self) -> PrefillExecutor | None:
        """Executor of prefill steps; None: the CPU has them."""
        return self._prefill

    def ready(self, wait_s: float) -> None:
        if self._prefill is not None:
            self._prefill.ready(wait_s)
        if self._ram is not None:
            self._ram.ready(wait_s)

    def close(self) -> None:
        if self._slots is not None:
            self._slots.close()
        if self._prefill is not None:
            self._prefill.close()
        if self._ram is not None:
            self._ram.close()

    def _staged(self, layer: int, tokens: int) -> StagedSubmission:
        """Take the memory of a submission, and note the CPU's call."""
        index, call, staged = self._index_of[layer], self._call(layer, tokens), self._memory.staged
        if self._main.is_captured:
            self._captured.setdefault(tokens, {})[index] = call
        else:
            self._calls[index] = call
        staged.acquire(index)
        return staged

    def _by_gpu(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor | None:
        """Queue the experts in slots; None if the step uses none."""
        if self._slots is None or len(x) > PREFILL_TOKENS:
            return None
        return self._slots.compute(layer, x, ids, weights)

    def _synchronize(self) -> None:
        """Wait for the CPU's part, which a graph runs in streams that end in the main one."""
        self._main.synchronize()
        self._host.synchronize()

    def _memory_for(self, num_tokens: int) -> StepMemory:
        """Return memory for a step; no other step may be in flight."""
        if num_tokens <= PREFILL_TOKENS:
            return self._decode_memory
        if self._prefill_memory is None or self._prefill_memory.max_tokens < num_tokens:
            max_tokens = 1 << (num_tokens - 1).bit_length()
            self._prefill_memory = None  # free it before allocating more
            self._prefill_memory = StepMemory(
                max_tokens, self._experts, self._device, has_calls=self._prefill is None
            )
        return self._prefill_memory

    def _call(self, layer: int, tokens: int) -> _C.HostCall:
        """Return the CPU's call; each size of decode step has its own, which a graph may replay."""
        memory, index = self._memory, self._index_of[layer]
        is_decode = memory is self._decode_memory
        key = (index, tokens if is_decode else 0)
        call = memory.calls.get(key)
        if call is None:
            slot_of = 0
            if is_decode and self._slots is not None:
                slot_of = self._slots.slot_of(layer).ctypes.data
            call = memory.calls[key] = memory.make_call(index, slot_of)
        call.num_tokens = tokens
        return call

    def _count(self) -> None:
        """Tell the cache what the step used, once all of its ids are on the host."""
        if self._slots is not None:
            is_prefill = self._num_tokens > PREFILL_TOKENS
            self._slots.cache.end_step(self._accesses(), is_prefill=is_prefill)
        self._is_counted = True

    def _take_errors(self) -> str | None:
        """Clear the errors of the step's calls; return the first."""
        numbers = self._experts.numbers
        found = [
            f"experts of blk.{numbers[index]} on the CPU: {error}"
            for index, call in self._calls.items()
            if call is not None and (error := call.take_error()) is not None
        ]
        return found[0] if found else None

    def _as_error(self, text: str) -> HybridMoeError:
        """Return the error of a step whose calls failed."""
        return HybridMoeError(text) if self._ram is None else self._ram.as_error(text)

    def _accesses(self) -> list[tuple[int, NDArray[np.int32]]]:
        """List each layer's distinct experts, in order of first use."""
        indices = list(self._calls)
        if not indices:
            return []
        chosen = self._memory.ids[:, : self._num_tokens].numpy()[indices]  # (L, T, K)
        if not -1 <= chosen.min() <= chosen.max() < self._experts.num_experts:
            self._refuse(indices, chosen)
        rows = chosen.reshape(len(indices), -1)
        if self._num_tokens == 1 and chosen.min() >= 0:  # a token's are distinct
            return list(zip(indices, rows, strict=True))
        accesses = []
        for index, row in zip(indices, rows.tolist(), strict=True):
            distinct = dict.fromkeys(row)
            distinct.pop(-1, None)
            accesses.append((index, np.fromiter(distinct, np.int32, len(distinct))))
        return accesses

    def _refuse(self, indices: list[int], chosen: NDArray[np.int32]) -> None:
        """Raise HybridMoeError for the first layer with an expert that does not exist."""
        for index, row in zip(indices, chosen, strict=True):
            distinct = set(row.reshape(-1).tolist()) - {-1}
            if distinct and not 0 <= min(distinct) <= max(distinct) < self._experts.num_experts:
                layer = self._experts.numbers[index]
                raise HybridMoeError(f"experts of blk.{layer}: chosen are {sorted(distinct)}")


class _HybridSum(Pending):
    """Sum of a submission's two parts; the CPU's is being copied to the GPU."""

    __slots__ = ("_by_cpu", "_by_gpu", "_inputs", "_main", "_returned", "_staged")

    def __init__(
        self,
        main: Stream,
        staged: StagedSubmission,
        by_cpu: Tensor,
        returned: Event,
        by_gpu: Tensor | None,
        inputs: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        self._main, self._staged, self._returned = main, staged, returned
        self._by_cpu, self._by_gpu = by_cpu, by_gpu
        self._inputs = inputs  # keeps them alive until they have been copied

    def result(self) -> Tensor:
        self._main.wait_for(self._returned)
        self._staged.release()
        return self._by_cpu if self._by_gpu is None else self._by_gpu.add_(self._by_cpu)

"""Routed experts by the CPU and a card at once: each computes those of a layer that it holds.

The card's stream goes on while a second one brings states and choices to the host, calls the CPU's
kernels there, and brings their sum back; the card computes the experts in its slots meanwhile. In a
step of few tokens nothing here waits or decides: it queues the same work whoever is where, so that
a graph can repeat it. What the step chose is read, and the cache hears of it, when it has ended.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import Pending
from hybridmoe.device.streams import Event, Stream
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.backend import ExpertBackend, HostCallTime
from hybridmoe.experts.gpu.staging import StagedSubmission, StepMemory
from hybridmoe.experts.policy import PREFILL_TOKENS
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertStats

if TYPE_CHECKING:
    from hybridmoe.experts.gpu.slot_pool import SlotPool

__all__ = ["HybridExperts", "PrefillExecutor"]


class PrefillExecutor(Protocol):
    """Computes the experts of steps of many tokens."""

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """As `ExpertBackend.submit`."""
        ...

    def check(self) -> None:
        """A step has ended. Errors: HybridMoeError, what went wrong in it."""
        ...

    def close(self) -> None:
        """Any number of times."""
        ...


class HybridExperts(ExpertBackend):
    """`ExpertBackend`. One thread's, but for `stats`.

    A layer may be submitted twice, with what the other has as -1, before either result is asked
    for; a result is to be asked for before the layer after the next is submitted.
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
    ) -> None:
        """main: where steps run. host: a stream
        of the CPU's part. slots: experts on the card; None = the CPU has them all. prefill: who
        computes steps of more than 16 tokens; None = the CPU. Both are closed with this.
        """
        self._experts, self._device = experts, device
        self._index_of = experts.index_of
        self._main, self._host = main, host
        self._slots, self._prefill = slots, prefill
        # Of a layer's two submissions and the next layer's: no more are owed at once.
        self._decoding = StepMemory(PREFILL_TOKENS, experts, device, num_parts=2, num_lent=4)
        self._reading: StepMemory | None = None  # for many tokens, made when there are some
        self._memory = self._decoding
        self._num_tokens = 0
        self._is_open = False
        # By layer (counted from 0) and part: what this step, or the last of its size, submitted.
        self._calls: dict[tuple[int, int], _C.HostExpertCall | None] = {}
        self._calls_of: dict[int, dict[tuple[int, int], _C.HostExpertCall | None]] = {}

    def begin_step(self, num_tokens: int) -> None:
        """As `ExpertBackend`. Errors: what ended an upload to the card's slots."""
        if self._is_open:  # a step that failed
            self._synchronize()
            self._take_errors()
            if self._prefill is not None:
                with suppress(HybridMoeError):
                    self._prefill.check()
            self._is_open = False
        self._num_tokens, self._calls = num_tokens, {}
        self._memory = self._memory_for(num_tokens)
        self._memory.take_back()
        if self._slots is not None:
            self._slots.cache.begin_step()
        self._is_open = True

    def end_step(self) -> None:
        """As `ExpertBackend`; waits for the CPU's part. Errors: HybridMoeError."""
        self._synchronize()
        self._is_open = False
        if not self._calls:  # a graph has repeated what was submitted once
            self._calls = self._calls_of.get(self._num_tokens, {})
        elif self._memory is self._decoding:
            self._calls_of[self._num_tokens] = self._calls
        if (error := self._take_errors()) is not None:
            raise HybridMoeError(error)
        is_prefill = self._num_tokens > PREFILL_TOKENS
        if is_prefill and self._prefill is not None:
            self._prefill.check()
        if self._slots is not None:
            self._slots.cache.end_step(self._accesses(), is_prefill=is_prefill)

    def stats(self) -> ExpertStats | None:
        return None if self._slots is None else self._slots.cache.stats()

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """As `ExpertBackend.submit`, on the card; x, ids and weights stay as they are until then.

        The result is the caller's until the layer after the next is submitted.
        Numeric: the CPU's part as `kernels.ops.expert_ffn`, the card's as that of kernels.triton,
        in float32; the two are added.
        """
        index, tokens, memory, host = self._index_of[layer], len(x), self._memory, self._host
        part = memory.next_part(index)
        host.wait_for(self._main)
        host.copy(memory.ids[index, part, :tokens], ids)
        if tokens > PREFILL_TOKENS and self._prefill is not None:
            self._calls[index, part] = None
            return self._prefill.submit(layer, x, ids, weights)
        lent = memory.lend(index, part)
        host.copy(lent.x[:tokens], x)
        host.copy(lent.weights[:tokens], weights)
        call = self._calls[index, part] = self._call(layer, part, tokens)
        host.launch(call)
        result = lent.result[:tokens]
        host.copy(result, lent.out[:tokens])
        returned = host.record()
        hits: Tensor | None = None
        if self._slots is not None and tokens <= PREFILL_TOKENS:
            hits = self._slots.compute(layer, x, ids, weights)
        return _HybridSum(self._main, lent, result, returned, hits, (x, ids, weights))

    def host_call_times(self) -> list[HostCallTime]:
        numbers = self._experts.numbers
        return [
            HostCallTime(numbers[index], *call.times())
            for (index, _), call in self._calls.items()
            if call is not None
        ]

    def close(self) -> None:
        """Any number of times."""
        if self._slots is not None:
            self._slots.close()
        if self._prefill is not None:
            self._prefill.close()

    def _synchronize(self) -> None:
        """Wait for the CPU's part. A graph runs it in streams of its own, and ends in the main."""
        self._main.synchronize()
        self._host.synchronize()

    def _memory_for(self, num_tokens: int) -> "StepMemory":
        """Of a step. No other step's work is under way."""
        if num_tokens <= PREFILL_TOKENS:
            return self._decoding
        if self._reading is None or self._reading.max_tokens < num_tokens:
            num_lent = 1 if self._prefill is None else 0
            most = 1 << (num_tokens - 1).bit_length()
            self._reading = None  # before there is more
            self._reading = StepMemory(
                most, self._experts, self._device, num_parts=1, num_lent=num_lent
            )
        return self._reading

    def _call(self, layer: int, part: int, tokens: int) -> _C.HostExpertCall:
        """The CPU's part, as a call of its own for each size of step that a graph may repeat."""
        memory, index = self._memory, self._index_of[layer]
        is_decoding = memory is self._decoding
        key = (index, part, tokens if is_decoding else 0)
        call = memory.calls.get(key)
        if call is None:
            slot_of = 0
            if is_decoding and self._slots is not None:
                slot_of = self._slots.slot_of(layer).ctypes.data
            call = memory.calls[key] = memory.make_call(index, part, slot_of)
        call.num_tokens = tokens
        return call

    def _take_errors(self) -> str | None:
        """The first, of those of this step."""
        numbers = self._experts.numbers
        found = [
            f"experts of blk.{numbers[index]} on the CPU: {error}"
            for (index, _), call in self._calls.items()
            if call is not None and (error := call.take_error()) is not None
        ]
        return found[0] if found else None

    def _accesses(self) -> list[tuple[int, NDArray[np.int32]]]:
        """The distinct experts of each layer, in the order in which its tokens chose them."""
        ids = self._memory.ids[:, :, : self._num_tokens].numpy()
        parts: dict[int, list[int]] = {}
        for index, part in self._calls:
            parts.setdefault(index, []).append(part)
        accesses = []
        for index, both in parts.items():
            chosen = dict.fromkeys(ids[index, both].max(0).reshape(-1).tolist())
            chosen.pop(-1, None)
            if chosen and not 0 <= min(chosen) <= max(chosen) < self._experts.num_experts:
                number = self._experts.numbers[index]
                raise HybridMoeError(f"experts of blk.{number}: chosen are {sorted(chosen)}")
            accesses.append((index, np.fromiter(chosen, np.int32, len(chosen))))
        return accesses


class _HybridSum(Pending):
    """The CPU's sum of a submission, once it is back on the GPU, plus the GPU's own."""

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
        self._inputs = inputs  # alive until the copies of them are done

    def result(self) -> Tensor:
        self._main.wait_for(self._returned)
        assert self._staged.owner is not None, "a pending result is taken once"
        self._staged.owner = None
        return self._by_cpu if self._by_gpu is None else self._by_gpu.add_(self._by_cpu)

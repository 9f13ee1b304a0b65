"""Which experts are on the card: a table of slots, a policy, and uploads that nobody waits for.

The policy hears of each step when it has ended; what it admits is copied, a few experts a step, by
somebody else (`Copier`) while later steps run, and enters the table between two steps. An expert
that is not there yet is computed by the CPU. Knows neither kernels nor streams but the one in which
the table is copied. The policy is `ema`: an upload costs a read of memory as a miss does, so that
what counts is hits less uploads, and there it is the best of those that do not know the future, the
only one above zero in a small cache (docs/cache.md, docs/log.md).
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.device.streams import Stream, host_empty
from hybridmoe.experts.policy import CacheShape, Policy, make_policy
from hybridmoe.experts.stats import ExpertCounters, ExpertStats

__all__ = ["DEFAULT_VRAM_POLICY", "Copier", "GpuExpertCache", "Upload"]

DEFAULT_VRAM_POLICY = "ema"


class Upload(Protocol):
    """An expert on its way into a slot."""

    error: Exception | None  # what ended it, once it is done

    def is_done(self) -> bool:
        """Whether nothing will be written to the slot any more."""
        ...

    def cancel(self) -> None:
        """Write no more than has been begun. The slot is whoever's next once `is_done` says so."""
        ...


class Copier(Protocol):
    """Brings experts into slots, one after the other, behind the caller's back."""

    slot_bytes: int

    def begin(self, layer: int, expert: int, slot: int) -> Upload:
        """Copy an expert; layer: counted from 0. Steps that were asked for before may read the
        slot until they are done; none after them does before the upload is.
        """
        ...

    def close(self) -> None:
        """Stop, and wait until nothing is written any more. Any number of times."""
        ...


class GpuExpertCache:
    """One thread's, but for `stats`. Steps are begun and ended in turn; a failed one is not ended.

    `table` (L, E + 1) int32 on the host and `device_table` on the card hold each expert's slot, -1
    for none, and -1 at the end of each row, so that expert -1 has none either. They change in
    `begin_step` only, in place.
    """

    def __init__(
        self,
        shape: CacheShape,
        copier: Copier,
        main: Stream,
        device: torch.device,
        *,
        uploads_per_step: int,
        policy: Policy | None = None,
    ) -> None:
        """uploads_per_step: at most begun between two steps. policy: None = the default.

        main: where the steps run. Errors: ConfigError for a shape that cannot be.
        """
        self._policy = policy or make_policy(DEFAULT_VRAM_POLICY, shape)
        self._shape = shape
        self._copier = copier
        self._main = main
        self._uploads_per_step = uploads_per_step
        size = (shape.num_layers, shape.num_experts + 1)
        self.table = host_empty(size, torch.int32, device).fill_(-1)
        self.device_table = torch.full(size, -1, dtype=torch.int32, device=device)
        self._copied = main.record()  # the end of the last copy of the table
        self._slots = self.table.numpy()  # (L, E + 1), the same memory
        # A key that the policy holds is in one of these or in the table, and in none twice.
        self._waiting: dict[int, None] = {}  # admitted, not begun; the longest waiting first
        self._coming: dict[int, tuple[int, Upload]] = {}
        self._leaving: dict[int, None] = {}  # evicted, in the table until the next step
        self._cancelled: list[tuple[int, Upload]] = []
        self._free = list(range(shape.num_slots - 1, -1, -1))
        self._counters = ExpertCounters()
        self.uses = np.zeros(shape.num_keys, np.int64)  # accesses by key

    def begin_step(self) -> None:
        """Let the table say what is there now, and begin uploads.

        No step is under way on the CPU. Errors: what ended an upload, which will be tried again.
        """
        self._go_on(self._uploads_per_step)

    def fill(self, progress: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Bring all that was made resident, before the first step, and wait for it.

        Calls progress(bytes) as they come. Errors: what ended an upload.
        """
        num_left = len(self._waiting) + len(self._coming)
        while num_left:
            self._go_on(len(self._waiting))
            before, num_left = num_left, len(self._waiting) + len(self._coming)
            if before > num_left:
                progress((before - num_left) * self._copier.slot_bytes)
            elif num_left:
                time.sleep(0.001)

    def _go_on(self, num_uploads: int) -> None:
        failures = self._settle()
        for key in list(self._waiting)[: min(num_uploads, len(self._free))]:
            del self._waiting[key]
            slot = self._free.pop()
            layer, expert = divmod(key, self._shape.num_experts)
            self._coming[key] = (slot, self._copier.begin(layer, expert, slot))
        if failures:
            raise failures[0]

    def end_step(
        self, accesses: Iterable[tuple[int, NDArray[np.int32]]], *, is_prefill: bool
    ) -> None:
        """Hear what the step used: layers, counted from 0, and their distinct experts, in order."""
        counters, num_experts = self._counters, self._shape.num_experts
        for layer, experts in accesses:
            self.uses[layer * num_experts + experts] += 1
            decision = self._policy.on_access(layer, experts, is_prefill)
            counters.note(decision)
            counters.late += int((self._slots[layer, experts[decision.hits]] < 0).sum())
            for key in decision.evicted.tolist():
                self._evict(key)
            for key in (layer * num_experts + decision.admitted).tolist():
                self._admit(key)

    def warm(self, keys: NDArray[np.int64]) -> int:
        """Make keys resident, the most valuable first, as uploads of steps to come; how many."""
        self._policy.warm(keys)
        kept = set(self._policy.resident().tolist())
        chosen = [key for key in keys.tolist() if key in kept]
        self._waiting.update(dict.fromkeys(chosen))
        return len(chosen)

    def resident(self) -> NDArray[np.int64]:
        """The keys that the table has, ascending."""
        return np.flatnonzero(self._slots[:, :-1].reshape(-1) >= 0).astype(np.int64)

    def stats(self) -> ExpertStats:
        """The figures of about now. From any thread."""
        return ExpertStats(
            num_slots=self._shape.num_slots,
            num_resident=int((self._slots[:, :-1] >= 0).sum()),
            num_experts=self._shape.num_keys,
            buffer_bytes=self._copier.slot_bytes,
            counters=self._counters.copy(),
            place="VRAM",
        )

    def close(self) -> None:
        """End the uploads. Any number of times."""
        self._copier.close()

    def _settle(self) -> list[Exception]:
        """Bring the table up to date; what went wrong."""
        over = [pair for pair in self._cancelled if pair[1].is_done()]
        self._cancelled = [pair for pair in self._cancelled if pair not in over]
        self._free += [slot for slot, _ in over]
        done = [key for key, (_, upload) in self._coming.items() if upload.is_done()]
        ended = {key: self._coming.pop(key) for key in done}
        failures = []
        if done or self._leaving:
            self._copied.wait()
            self._free += [self._move(key, -1) for key in self._leaving]
            self._leaving.clear()
            for key, (slot, upload) in ended.items():
                if upload.error is None:
                    self._move(key, slot)
                else:
                    failures.append(upload.error)
                    self._free.append(slot)
                    self._waiting[key] = None
            self._main.copy(self.device_table, self.table)
            self._copied = self._main.record()
        return failures

    def _move(self, key: int, slot: int) -> int:
        """Enter a key's slot into the table; the one it had."""
        row, expert = divmod(key, self._shape.num_experts)
        before, self._slots[row, expert] = int(self._slots[row, expert]), slot
        return before

    def _admit(self, key: int) -> None:
        if key in self._leaving:  # it is still there
            del self._leaving[key]
        else:
            self._waiting[key] = None

    def _evict(self, key: int) -> None:
        counters = self._counters
        if key in self._waiting:
            del self._waiting[key]
            counters.cancelled += 1
        elif key in self._coming:
            slot, upload = self._coming.pop(key)
            upload.cancel()
            self._cancelled.append((slot, upload))
            counters.cancelled += 1
        else:
            self._leaving[key] = None

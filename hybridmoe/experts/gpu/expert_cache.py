"""Expert cache in VRAM: a slot table, a cache policy, and uploads between steps.

After each step the policy sees what was used. What it admits is uploaded, a few experts before each
step; what has arrived then enters the table. Until then the CPU computes them. Over a RAM tier, an
expert is in one of the two: what the policy admits leaves RAM, what it evicts is offered back. The
default policy is `cost-aware`, since an upload costs as much time as several hits save
(docs/cuda.md).
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.device.streams import Stream, host_empty
from hybridmoe.experts.policy import CacheShape, Policy, PricedPolicy, make_policy
from hybridmoe.experts.stats import TIERS, ExpertCounters, ExpertStats

__all__ = ["DEFAULT_VRAM_POLICY", "GpuExpertCache", "LowerTier", "Upload", "Uploader"]

DEFAULT_VRAM_POLICY = "cost-aware"
_ASK_S = 0.5  # between calls of `progress` while a disk hangs


class Upload(Protocol):
    """An expert in flight to a slot."""

    error: Exception | None  # set once done, if it failed

    def is_done(self) -> bool:
        """Return True once the slot will not be written any more."""
        ...

    def cancel(self) -> None:
        """Start no further copy. The slot may be reused once `is_done`."""
        ...


class Uploader(Protocol):
    """Copies experts into slots, in order."""

    slot_bytes: int

    def begin(self, layer_index: int, expert: int, slot: int) -> Upload:
        """Start an upload. Steps that are queued already may still read the slot; later ones may
        not until the upload is done.
        """
        ...

    def advance(self, num_bytes: int) -> None:
        """Copy up to `num_bytes` to where the GPU takes them from, without waiting for it."""
        ...

    def close(self) -> None:
        """Stop, and wait until nothing is written any more. Idempotent."""
        ...


class LowerTier(Protocol):
    """RAM that shares experts with the slots: each is kept by one of the two, or is on disk only.

    Keys are the cache's. No layer of a step is computed during a call.
    """

    def discard(self, key: int) -> None:
        """Hand an expert over to VRAM. Its bytes stay for the upload if a buffer is free."""
        ...

    def offer(self, key: int) -> None:
        """Take an expert back from VRAM, if the tier's policy wants it."""
        ...

    def returned(self, key: int, slot: int) -> None:
        """Copy an expert that was offered from its slot, which later uploads may fill again."""
        ...

    def advance(self) -> Exception | None:
        """Take in reads that have ended. Returns why one has failed, if so."""
        ...

    def is_ready(self, key: int) -> bool:
        """Return True if an expert of VRAM can be uploaded; else read it once a buffer is free."""
        ...

    def uploaded(self, key: int) -> None:
        """Free what an expert of VRAM has in RAM: its upload has arrived."""
        ...


class GpuExpertCache:
    """VRAM expert slots. Not thread-safe, except `stats`.

    Steps alternate `begin_step` and `end_step`; a failed step is not ended. `table` (L, E + 1)
    int32 on the host and `device_table` on the GPU hold each expert's slot, or -1. The last column
    is -1, so that expert -1 has no slot. The tables change in `begin_step` only, in place.
    """

    def __init__(
        self,
        shape: CacheShape,
        uploader: Uploader,
        main: Stream,
        device: torch.device,
        *,
        uploads_per_step: int,
        policy: Policy | None = None,
        below: LowerTier | None = None,
    ) -> None:
        """main: stream of the steps. policy: None = the default.

        below: None = all experts are in the memory map.
        Errors: ConfigError for a shape that is not usable.
        """
        self._below = below
        self._policy = policy or make_policy(DEFAULT_VRAM_POLICY, shape)
        self._shape = shape
        self._uploader = uploader
        self._main = main
        self._uploads_per_step = uploads_per_step
        size = (shape.num_layers, shape.num_experts + 1)
        self.table = host_empty(size, torch.int32, device).fill_(-1)
        self.device_table = torch.full(size, -1, dtype=torch.int32, device=device)
        self._copied = main.record()  # the end of the last copy of the table
        self._slots = self.table.numpy()  # (L, E + 1), the same memory
        # Each key that the policy keeps is in exactly one of: queued, in flight, the table.
        self._queued: dict[int, None] = {}  # in order of admission
        self._in_flight: dict[int, tuple[int, Upload]] = {}  # key -> slot, upload
        self._evicted: dict[int, None] = {}  # stay in the table until the next step
        self._cancelled: list[tuple[int, Upload]] = []  # slot, upload
        self._free = list(range(shape.num_slots - 1, -1, -1))
        self._read_error: Exception | None = None  # of the tier below, in the last `_advance`
        self._counters = ExpertCounters()
        self.uses = np.zeros(shape.num_keys, np.int64)  # accesses by key

    @property
    def num_pending(self) -> int:
        """Uploads that are queued or in flight."""
        return len(self._queued) + len(self._in_flight)

    @property
    def num_free(self) -> int:
        """Slots that hold no expert and are not being written."""
        return len(self._free)

    def fill_up(self) -> None:
        """Queue uploads for all free slots: as many of each layer, since nothing else is known."""
        layers, experts = self._shape.num_layers, self._shape.num_experts
        keys = np.arange(self._shape.num_keys).reshape(layers, experts).T.reshape(-1)
        self.warm(keys[~np.isin(keys, self.kept())])

    def kept(self) -> NDArray[np.int64]:
        """Keys that the policy keeps, resident or pending, ascending."""
        return self._policy.resident()

    def price_uploads(self, hits: float) -> None:
        """Tell the policy what an upload costs, in hits."""
        if isinstance(self._policy, PricedPolicy):
            self._policy.upload_hits = hits

    def begin_step(self) -> None:
        """Update the tables and start uploads. No step may be in flight on the CPU.

        Errors: of a failed upload, which will be tried again. A failed read is tried again, too;
        until then the expert is late.
        """
        self._advance(self._uploads_per_step, self._uploads_per_step * self._uploader.slot_bytes)

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Upload all that is queued, and wait. Only before the first step.

        Calls progress(bytes done, bytes in all), now and then also while nothing arrives: it may
        raise to end this. Errors: of a failed upload or read.
        """
        total = num_left = self.num_pending
        one, asked = self._uploader.slot_bytes, time.monotonic()
        while num_left:
            self._advance(len(self._queued), num_left * one)
            if self._read_error is not None:
                raise self._read_error
            before, num_left = num_left, self.num_pending
            if before > num_left or time.monotonic() - asked > _ASK_S:
                progress((total - num_left) * one, total * one)
                asked = time.monotonic()
            elif num_left:
                time.sleep(0.001)

    def end_step(
        self, accesses: Iterable[tuple[int, NDArray[np.int32]]], *, is_prefill: bool
    ) -> None:
        """Apply the policy to a step: layer indices and their distinct experts, in order."""
        counters, num_experts = self._counters, self._shape.num_experts
        for layer_index, experts in accesses:
            self.uses[layer_index * num_experts + experts] += 1
            decision = self._policy.on_access(layer_index, experts, is_prefill)
            counters.note(decision)
            counters.late += int((self._slots[layer_index, experts[decision.hits]] < 0).sum())
            # A newcomer from RAM gives its slot there to the one that leaves VRAM.
            for key in (layer_index * num_experts + decision.admitted).tolist():
                self._admit(key)
            for key in decision.evicted.tolist():
                self._evict(key)

    def warm(self, keys: NDArray[np.int64]) -> int:
        """Queue the upload of keys, hottest first, as far as slots are free. Returns how many."""
        self._policy.warm(keys)
        kept = set(self.kept().tolist())
        chosen = [key for key in keys.tolist() if key in kept]
        for key in chosen:
            if self._below is not None and key not in self._queued:
                self._below.discard(key)
            self._queued[key] = None
        return len(chosen)

    def resident(self) -> NDArray[np.int64]:
        """Return the keys in the table, ascending."""
        return np.flatnonzero(self._slots[:, :-1].reshape(-1) >= 0).astype(np.int64)

    def tiers(self, ids: NDArray[np.int16], below: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Find what served experts (T, L, K) of the last step, those without a slot by `below`."""
        slots = self._slots[np.arange(ids.shape[1])[:, None], ids]
        return np.where(slots >= 0, np.uint8(TIERS.index("VRAM")), below)

    def stats(self) -> ExpertStats:
        """Return gauges and counters. Thread-safe."""
        return ExpertStats(
            num_slots=self._shape.num_slots,
            num_resident=int((self._slots[:, :-1] >= 0).sum()),
            num_experts=self._shape.num_keys,
            buffer_bytes=self._uploader.slot_bytes,
            counters=self._counters.copy(),
            place="VRAM",
        )

    def close(self) -> None:
        """End the uploads. Idempotent."""
        self._uploader.close()

    def _advance(self, num_uploads: int, num_bytes: int) -> None:
        """Collect finished uploads, start up to `num_uploads`, and copy up to `num_bytes`."""
        failures = self._collect()
        if self._below is not None:
            self._read_error = self._below.advance()
        for key in self._next_uploads(min(num_uploads, len(self._free))):
            del self._queued[key]
            slot = self._free.pop()
            layer_index, expert = divmod(key, self._shape.num_experts)
            self._in_flight[key] = (slot, self._uploader.begin(layer_index, expert, slot))
        if self._in_flight:
            self._uploader.advance(num_bytes)
        if failures:
            raise failures[0]

    def _next_uploads(self, most: int) -> list[int]:
        """List the first queued keys whose bytes are in memory."""
        if self._below is None:
            return list(self._queued)[:most]
        ready: list[int] = []
        for key in self._queued:
            if len(ready) == most:
                break
            if self._below.is_ready(key):
                ready.append(key)
        return ready

    def _collect(self) -> list[Exception]:
        """Update the tables; return the errors of failed uploads."""
        over = [pair for pair in self._cancelled if pair[1].is_done()]
        self._cancelled = [pair for pair in self._cancelled if pair not in over]
        self._free += [slot for slot, _ in over]
        done = [key for key, (_, upload) in self._in_flight.items() if upload.is_done()]
        ended = {key: self._in_flight.pop(key) for key in done}
        failures = []
        if done or self._evicted:
            self._copied.wait()
            for key in self._evicted:
                slot = self._set_slot(key, -1)
                self._free.append(slot)
                if self._below is not None:
                    self._below.returned(key, slot)
            self._evicted.clear()
            for key, (slot, upload) in ended.items():
                if upload.error is None:
                    self._set_slot(key, slot)
                    if self._below is not None:
                        self._below.uploaded(key)
                else:
                    failures.append(upload.error)
                    self._free.append(slot)
                    self._queued[key] = None
            self._main.copy(self.device_table, self.table)
            self._copied = self._main.record()
        return failures

    def _set_slot(self, key: int, slot: int) -> int:
        """Write a key's slot into the table; return the previous one."""
        row, expert = divmod(key, self._shape.num_experts)
        before, self._slots[row, expert] = int(self._slots[row, expert]), slot
        return before

    def _admit(self, key: int) -> None:
        if self._below is not None:
            self._below.discard(key)
        if key not in self._evicted:
            self._queued[key] = None
            return
        del self._evicted[key]  # still in the table
        if self._below is not None:
            self._below.uploaded(key)

    def _evict(self, key: int) -> None:
        counters = self._counters
        if key in self._queued:
            del self._queued[key]
            counters.cancelled += 1
        elif key in self._in_flight:
            slot, upload = self._in_flight.pop(key)
            upload.cancel()
            self._cancelled.append((slot, upload))
            counters.cancelled += 1
        else:
            self._evicted[key] = None
        if self._below is not None:
            self._below.offer(key)

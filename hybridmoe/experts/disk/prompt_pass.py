"""Long prompts over the disk: reads in file order that go on from layer to layer.

A prompt uses nearly all experts of a layer, so that its time is the disk's if reads never stop: the
next layer's begin, behind all that is urgent, as soon as this layer's last ones are under way, and
go on through attention and routing. Of those, what a layer does not choose is dropped, and counted.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.errors import DiskError

__all__ = ["ExpertProducts", "ExpertSource", "PromptPass", "ReadAhead"]

_LEAST_SHARE = 0.5  # of a layer's experts: so many are chosen where reading ahead is worth it
_BATCH_SHARE = 8  # of the buffers, those whose experts are computed in one call


class ExpertSource(Protocol):
    """Experts in memory or in flight, by key: `layer index * num_experts + expert`."""

    def is_loaded(self, key: int) -> bool: ...

    def is_in_flight(self, key: int) -> bool: ...

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        """Load an expert, or raise its priority. Returns False if no buffer is free."""

    def release(self, key: int) -> bool:
        """Free an expert's buffer unless it is resident. Returns True if it was never read."""

    def collect(self, *, wait: bool) -> Mapping[int, DiskError | None]:
        """Take in the reads that have ended: each key's error, or None."""


class ExpertProducts(Protocol):
    """Consumer of a layer's experts."""

    def compute(self, keys: Sequence[int]) -> None:
        """Begin the products of experts that are loaded."""

    def take_done(self, *, wait: bool) -> Sequence[int]:
        """Return experts whose memory is not read any more, each once.

        wait: for at least one, if the memory of any still is.
        """


@dataclass(slots=True)
class ReadAhead:
    """Numbers of experts read before their layer was routed."""

    num_read: int = 0
    num_used: int = 0


class PromptPass:
    """Computes the experts of long steps, layer by layer in order. Not thread-safe."""

    def __init__(
        self,
        source: ExpertSource,
        num_layers: int,
        num_experts: int,
        top_k: int,
        num_streamed: int,
    ) -> None:
        """num_streamed: buffers for experts that are not resident."""
        self._source = source
        # By key: experts that long steps find elsewhere, so that they are not read ahead.
        self.is_elsewhere = np.zeros(num_layers * num_experts, np.bool_)
        self._num_layers, self._num_experts, self._top_k = num_layers, num_experts, top_k
        self._batch = max(1, num_streamed // _BATCH_SHARE)
        self._ahead_layer = -1  # index of the layer whose experts are read ahead
        self._ahead: dict[int, None] = {}  # keys requested so far, in file order
        self._is_worth_it = False
        self.read_ahead = ReadAhead()

    @property
    def ahead(self) -> Iterable[int]:
        """Keys that are read ahead now."""
        return self._ahead.keys()

    def begin_step(self, num_tokens: int) -> None:
        """Drop what a failed step has left; begin with the first layer of a long step."""
        self.discard()
        if num_tokens > PREFILL_TOKENS:
            share_left_out = (1 - self._top_k / self._num_experts) ** num_tokens  # if uniform
            self._is_worth_it = 1 - share_left_out >= _LEAST_SHARE
            self._read_ahead(0)

    def discard(self) -> None:
        """Drop all that is read ahead."""
        self._take(range(0))

    def compute(
        self, index: int, experts: Sequence[int], num_free: int, products: ExpertProducts
    ) -> None:
        """Compute a layer's experts: the first `num_free` in any order, the rest in theirs.

        At the end the memory of some may still be read. Errors: DiskError, StalledReadError.
        """
        keys = [index * self._num_experts + expert for expert in experts]
        source = self._source
        source.collect(wait=False)  # a read ahead that failed is requested again
        self._is_worth_it = len(keys) >= _LEAST_SHARE * self._num_experts
        self._take(keys)
        waiting = _Waiting(keys, num_free, source)
        to_request = waiting.missing()
        self._request(to_request, waiting, index)
        while waiting:
            ready = waiting.take(self._batch)
            if ready:
                products.compute(ready)
            elif not waiting.is_any_in_flight():
                if self._release(products.take_done(wait=True)):  # all buffers were its
                    self._request(to_request, waiting, index)
                    continue
                # All buffers hold experts that were read in file order, and have to wait for
                # others that are computed first.
                waiting.give_up(self._top_k)
                to_request = waiting.missing()
                self._request(to_request, waiting, index)
            self._release(products.take_done(wait=False))
            for key, error in source.collect(wait=not ready).items():
                if key in waiting:
                    if error is not None:
                        raise error
                    waiting.arrive(key)
            self._request(to_request, waiting, index)

    def _release(self, keys: Sequence[int]) -> bool:
        """Free the buffers of experts that were computed. Returns False without any."""
        for key in keys:
            self._source.release(key)
        return bool(keys)

    def _take(self, keys: Iterable[int]) -> None:
        """End the reading ahead: of its experts, keep those with `keys`, and count."""
        ahead, self._ahead, self._ahead_layer = self._ahead, {}, -1
        kept = ahead.keys() & set(keys)
        for key in ahead:
            if key not in kept and self._source.release(key):
                self.read_ahead.num_read -= 1  # it was never read
        self.read_ahead.num_used += len(kept)

    def _request(self, keys: deque[int], waiting: "_Waiting", index: int) -> None:
        """Request keys from the left while buffers are free; then the next layer's.

        A key that was in flight already may have been computed since.
        """
        while keys and (keys[0] not in waiting or self._source.request(keys[0])):
            keys.popleft()
        if not keys:
            self._read_ahead(index + 1)

    def _read_ahead(self, index: int) -> None:
        """Request a layer's experts in file order, behind all urgent reads."""
        if not self._is_worth_it or index >= self._num_layers:
            return
        first_key = index * self._num_experts
        if index != self._ahead_layer:
            self._ahead_layer, self._next = index, first_key
        source, end = self._source, first_key + self._num_experts
        while self._next < end:
            key = self._next
            if not (self.is_elsewhere[key] or source.is_loaded(key) or source.is_in_flight(key)):
                if not source.request(key, is_urgent=False):
                    return
                self._ahead[key] = None
                self.read_ahead.num_read += 1
            self._next += 1


class _Waiting:
    """Experts of a layer that have not been computed, and those of them that may be now."""

    def __init__(self, keys: Sequence[int], num_free: int, source: ExpertSource) -> None:
        self._source = source
        self._free = dict.fromkeys(keys[:num_free])
        self._in_order = deque(keys[num_free:])
        self._loaded: dict[int, None] = {}
        for key in keys:
            if source.is_loaded(key):
                self._loaded[key] = None

    def __bool__(self) -> bool:
        return bool(self._free or self._in_order)

    def __contains__(self, key: int) -> bool:
        return key in self._free or key in self._in_order

    def arrive(self, key: int) -> None:
        """Note that an expert is loaded now."""
        self._loaded[key] = None

    def take(self, most: int) -> list[int]:
        """Remove up to `most` experts that may be computed now; returns them in order."""
        is_free = bool(self._free)
        taken: list[int] = []
        for key in self._loaded if is_free else self._in_order:
            if len(taken) == most or not (is_free or key in self._loaded):
                break
            if not is_free or key in self._free:
                taken.append(key)
        for key in taken:
            del self._loaded[key]
            if is_free:
                del self._free[key]
            else:
                self._in_order.popleft()
        return taken

    def missing(self) -> deque[int]:
        """List the experts that are not loaded, in the order in which they are needed."""
        keys = (*self._free, *self._in_order)
        return deque(key for key in keys if key not in self._loaded)

    def is_any_in_flight(self) -> bool:
        return any(map(self._source.is_in_flight, (*self._free, *self._in_order)))

    def give_up(self, count: int) -> None:
        """Free the buffers of `count` experts, those that are needed last. Not of resident ones."""
        for key in reversed(self._in_order):
            if count > 0 and key in self._loaded:
                self._source.release(key)
                if not self._source.is_loaded(key):
                    del self._loaded[key]
                    count -= 1

"""Prefill over VRAM, RAM and disk: the GPU computes all experts, each where it is or as it comes.

Those in VRAM slots come first. The others pass in file order from RAM's buffers, or from the file
through them, over the link into a ring of device buffers. A group is multiplied when its last
expert has been queued; a buffer of RAM is free when its copy is done. Reads go on from one layer to
the next (experts.disk.prompt_pass). Sums are in the order of the groups, which depends on the
routing and on what is in VRAM, never on timing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.pending import OnDemand, Pending
from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.host_registration import host_view
from hybridmoe.experts.gpu.prefill_experts import AddExperts, ExpertTally, ResidentExperts
from hybridmoe.experts.gpu.routed_pairs import RoutedPairs, places_of, table_size
from hybridmoe.experts.gpu.weight_stream import SlotPart, WeightStream
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.expert_groups import LayerStates, cut_groups
from hybridmoe.planning.prefill_split import group_size

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["TierPrefill"]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Experts of one layer."""

    index: int  # among those of this GPU
    layout: "SlotLayout | None"  # None: the CPU computes the layer
    sizes: tuple[int, int, int]  # bytes of an expert's gate, up and down


class _Group(NamedTuple):
    """Experts that the GPU computes together."""

    experts: list[int]
    slots: list[int]  # of the data


class TierPrefill:
    """`PrefillExecutor` over one GPU's slots and a RAM tier. Not thread-safe. Must be closed."""

    def __init__(
        self,
        ram: CachedExperts,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout | None]",
        add_experts: AddExperts,
        main: Stream,
        weights: WeightStream,
        device: torch.device,
        *,
        first: int = 0,
        max_tokens: int,
        resident: ResidentExperts | None = None,
    ) -> None:
        """ram: of all layers. experts: of this GPU, `first` the index of its first layer in `ram`.

        layouts: as in the file, by layer index. weights: with buffers for the largest expert;
        closed with this. max_tokens: of a step. resident: experts in VRAM slots.
        """
        self._ram, self._first = ram, first
        self._num_experts, self._max_tokens = experts.num_experts, max_tokens
        self._add_experts, self._main, self._device = add_experts, main, device
        self._weights, self._resident = weights, resident
        self._layers = {
            number: _Layer(index, layout, experts.by_index[index].matrix_bytes)
            for index, (number, layout) in enumerate(zip(experts.numbers, layouts, strict=True))
        }
        self._numbers = experts.numbers
        inter = experts.by_index[0].gate.rows
        self._group_size = max(1, min(group_size(experts.hidden, inter), weights.num_buffers // 2))
        top_k, num_experts = experts.top_k, experts.num_experts
        self._ids = host_empty((max_tokens, top_k), torch.int32, device)
        size = table_size(max_tokens, top_k, num_experts)
        self._tables = host_empty((size,), torch.int32, device)
        self._copies: deque[tuple[int, Event]] = deque()  # keys whose memory is being copied from
        self.tally = ExpertTally()

    def begin_step(self, num_tokens: int) -> None:
        """Begin the reads for the first layer; see `PrefillExecutor`."""
        self._weights.release_all()  # of a step that failed
        self._end_copies()
        if self._resident is not None:
            start, count = self._first * self._num_experts, len(self._layers) * self._num_experts
            in_slots = self._resident.table[: len(self._layers), : self._num_experts] >= 0
            self._ram.prompt.is_elsewhere[start : start + count] = in_slots.reshape(-1)
        if self._first == 0:
            self._ram.begin_step(num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Start a layer; see `ExpertBackend.submit`.

        The result waits for the ids, and for all reads of the layer. Errors: DiskError,
        StalledReadError, of the result.
        Numeric: as `kernels.triton.add_experts`.
        """
        host_ids = self._ids[: len(ids)]
        self._main.copy(host_ids, ids)
        routed = self._main.record()

        def finish() -> Tensor:
            routed.wait()
            return self._finish(self._layers[layer], x, host_ids, weights)

        return OnDemand(finish)

    def check(self) -> None:
        """Free the buffers of RAM that the last layer was copied from."""
        self._end_copies()

    def ready(self, wait_s: float) -> None:
        return

    def close(self) -> None:
        """End the copies. Idempotent."""
        self._weights.close()

    def _finish(self, known: _Layer, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Queue a layer whose ids have arrived; returns its sum (T, H)."""
        if known.layout is None:
            number = self._numbers[known.index]
            return self._ram.submit(number, x.cpu(), ids, weights.cpu()).result().to(self._device)
        pairs, layout = RoutedPairs(ids.numpy(), self._num_experts), known.layout
        slot_of = self._slots_of(known)
        in_slots = [e for e in pairs.chosen.tolist() if slot_of[e] >= 0]
        streamed = [e for e in pairs.chosen.tolist() if slot_of[e] < 0]
        first = self._groups(in_slots, [int(slot_of[e]) for e in in_slots], pairs)
        then = self._groups(streamed, self._weights.next_buffers(len(streamed)), pairs)
        out = x.new_zeros(x.shape)  # (T, H)
        products = _LayerProducts(self._weights, self._copies, lambda key: self._parts(known, key))
        if first or then:
            tables = pairs.tables(
                [(group.experts, group.slots) for group in (*first, *then)],
                self._tables,
                lambda t: t.to(self._device, non_blocking=True),  # torch's stream is the main one
            )
            places = places_of(tables.pairs, (x.shape[0], weights.shape[1]))
            states = LayerStates(x.bfloat16(), weights, tables.pairs, places, out)
            for on_gpu in tables.groups[: len(first)]:
                assert self._resident is not None
                slots = self._resident.slots
                self._add_experts(states, on_gpu, slots, layout.packed, tables.tile_rows)
            for group, on_gpu in zip(then, tables.groups[len(first) :], strict=True):
                products.add(
                    group.slots,
                    partial(
                        self._add_experts,
                        states,
                        on_gpu,
                        self._weights.data,
                        layout,
                        tables.tile_rows,
                    ),
                )
        self._ram.stream(self._first + known.index, ids, streamed, 0, products)
        self._count(known, len(in_slots), len(streamed))
        return out

    def _groups(self, experts: list[int], slots: list[int], pairs: RoutedPairs) -> list[_Group]:
        parts = cut_groups(pairs.counts[experts].tolist(), self._group_size, self._max_tokens)
        return [_Group(experts[part], slots[part]) for part in parts]

    def _slots_of(self, known: _Layer) -> NDArray[np.int32]:
        """List the VRAM slots of a layer's experts; -1 = none."""
        if self._resident is None:
            return np.full(self._num_experts, -1, np.int32)
        return self._resident.table[known.index, : self._num_experts]

    def _parts(self, known: _Layer, key: int) -> list[SlotPart]:
        """List the bytes of an expert that is loaded."""
        layout, addresses = known.layout, self._ram.native.addresses(key)
        assert layout is not None and addresses is not None, key
        offsets = (0, layout.up_offset, layout.down_offset)
        return [
            SlotPart(offset, host_view(address, size))
            for offset, address, size in zip(offsets, addresses, known.sizes, strict=True)
        ]

    def _count(self, known: _Layer, in_slots: int, streamed: int) -> None:
        self.tally.resident += in_slots
        self.tally.streamed += streamed
        self.tally.streamed_bytes += streamed * sum(known.sizes)

    def _end_copies(self) -> None:
        """Wait for all copies from RAM, and free what they read."""
        while self._copies:
            key, copied = self._copies.popleft()
            copied.wait()
            self._ram.release(key)


class _LayerProducts:
    """`ExpertProducts` of a layer: copies to the GPU, and a product for each group of them."""

    def __init__(
        self,
        weights: WeightStream,
        copies: deque[tuple[int, Event]],
        parts_of: Callable[[int], list[SlotPart]],
    ) -> None:
        """copies: of the layers before. parts_of: bytes of a key."""
        self._weights, self._copies, self._parts_of = weights, copies, parts_of
        self._groups: deque[tuple[list[int], Callable[[], None]]] = deque()
        self._num_started = 0  # of the first group's

    def add(self, buffers: list[int], multiply: Callable[[], None]) -> None:
        """Add a group, which takes these buffers, behind the others."""
        self._groups.append((buffers, multiply))

    def compute(self, keys: Sequence[int]) -> None:
        for key in keys:
            buffers, multiply = self._groups[0]
            started = self._weights.start(self._parts_of(key))
            assert started == buffers[self._num_started], (started, buffers)
            self._copies.append((key, self._weights.arrival(started)))
            self._num_started += 1
            if self._num_started == len(buffers):
                self._weights.wait_for(started)
                multiply()
                self._weights.release(buffers)
                self._groups.popleft()
                self._num_started = 0

    def take_done(self, *, wait: bool) -> list[int]:
        done: list[int] = []
        if wait and self._copies:
            self._copies[0][1].wait()
        while self._copies and self._copies[0][1].is_done():
            done.append(self._copies.popleft()[0])
        return done

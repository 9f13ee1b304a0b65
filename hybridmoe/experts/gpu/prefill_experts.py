"""Prefill on the CPU and a GPU at once: experts are split by predicted time, layer by layer.

The host reads a layer's ids and splits its experts (planning.prefill_split). The CPU's go to the
native kernels through a stream of host calls. The GPU's are resident in VRAM slots or streamed over
the link (weight_stream), dequantized and multiplied there, a group at a time. Copies for a layer
begin while the one before it is computed, where its experts are those of the last step. Sums are in
the order of the split: results depend on rates and on what is in VRAM, never on timing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import OnDemand, Pending
from hybridmoe.device.streams import Stream
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.gpu.prefill_layers import HostMemory, LayerExperts, bind_layers
from hybridmoe.experts.gpu.routed_pairs import RoutedPairs, places_of
from hybridmoe.experts.gpu.weight_stream import SlotPart, WeightStream
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.expert_groups import ExpertGroup, LayerStates, cut_groups
from hybridmoe.planning.prefill_split import Split, costs_of, group_size, split
from hybridmoe.planning.rates import Rates

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = ["AddExperts", "ExpertTally", "ResidentExperts", "StreamedExperts", "Streams"]

# states, group, data, layout, rows of a tile: `kernels.triton.expert_prefill.add_experts`
AddExperts = Callable[[LayerStates, ExpertGroup, Tensor, "SlotLayout", int], None]


class ResidentExperts(NamedTuple):
    """Experts in VRAM slots. Does not change during a step."""

    slots: Tensor  # (slots, bytes) uint8, on the GPU
    table: NDArray[np.int32]  # (L, E or more): slots by layer index; -1 = none


class Streams(NamedTuple):
    """Streams that run at once."""

    main: Stream  # the GPU's products
    host: Stream  # the CPU's part, and copies of its inputs and result
    link: Stream  # copies of experts alone


@dataclass(slots=True)
class ExpertTally:
    """Numbers of experts computed by the CPU and the GPU, and the last step's splits by layer."""

    cpu: int = 0
    resident: int = 0
    streamed: int = 0
    ahead: int = 0  # of those streamed, begun before their layer
    streamed_bytes: int = 0
    splits: dict[int, Split] = field(default_factory=dict)


class _Ahead(NamedTuple):
    """Experts whose copies began before their layer: buffers by expert, in order."""

    layer: int
    buffers: dict[int, int]


class _Group(NamedTuple):
    """Experts that the GPU computes together."""

    experts: list[int]
    slots: list[int]  # of the data
    data: Tensor  # (slots, bytes) uint8
    num_waiting: int  # of the layer's streamed experts, those that come after these


class StreamedExperts:
    """Prefill backend of `HybridExperts`. Not thread-safe. Must be closed."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout | None]",
        add_experts: AddExperts,
        rates: Rates,
        streams: Streams,
        weights: WeightStream,
        device: torch.device,
        *,
        max_tokens: int,
        resident: ResidentExperts | None = None,
    ) -> None:
        """layouts: as in the file, by layer index; None = the CPU computes the layer.

        rates: with the GPU's. weights: with buffers for the largest of these experts; closed with
        this. max_tokens: of a step. resident: experts in VRAM slots.
        """
        assert rates.gpu is not None, "rates without the GPU's"
        self._add_experts = add_experts
        self.rates, self._gpu = rates, rates.gpu
        self._streams, self._weights, self._device = streams, weights, device
        self._resident = resident
        self._num_experts, self._max_tokens = experts.num_experts, max_tokens
        self._memory = HostMemory.allocate(experts, max_tokens, device, streams.host.record())
        self._layers = bind_layers(experts, layouts, self._memory)
        self._following = dict(zip((None, *experts.numbers), experts.numbers, strict=False))
        self._group_size = max(
            1,
            min(
                group_size(experts.hidden, experts.by_index[0].gate.rows), weights.num_buffers // 2
            ),
        )
        self._ahead = _Ahead(-1, {})
        self._last_tokens: dict[int, int] = {}  # of the last split, by layer
        self._alive: tuple[Tensor, ...] = ()
        self.tally = ExpertTally()

    def begin_step(self, num_tokens: int) -> None:
        """Begin copies for the first layer, while what comes before it is computed."""
        self._weights.release_all()  # of a step that failed
        self._ahead = _Ahead(-1, {})
        self._start_ahead(self._following.get(None), num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Start one layer on the GPU; see `ExpertBackend.submit`.

        The result waits for the ids, while the GPU goes on with what it has got until then, and
        queues the rest. x must not change until the next layer's submission.
        Numeric: the GPU as `kernels.triton.add_experts`; the two sides' sums are added in f32.
        """
        main, memory, num_tokens = self._streams.main, self._memory, x.shape[0]
        memory.returned.wait()
        main.copy(memory.ids[:num_tokens], ids)
        main.copy(memory.weights[:num_tokens], weights)
        self._alive = (x, ids, weights)  # for streams beside the main one
        routed = main.record()

        def finish() -> Tensor:
            routed.wait()
            return self._finish(self._layers[layer], x, weights)

        return OnDemand(finish)

    def check(self) -> None:
        """Raise the CPU's errors of a finished step. Errors: HybridMoeError."""
        errors = [known.call.take_error() for known in self._layers.values()]  # clears all
        if (error := next(filter(None, errors), None)) is not None:
            raise HybridMoeError(f"experts on the CPU: {error}")

    def host_memory(self, layer: int) -> tuple[_C.HostExpertCall, list[Tensor], list[Tensor]]:
        """Return a layer's CPU call, and the tensors that it reads and writes, for diagnostics."""
        memory = self._memory
        reads = [memory.x, memory.ids, memory.weights, memory.left_out]
        return self._layers[layer].call, reads, [memory.out]

    @property
    def link_rate(self) -> float:
        """Bytes/s of copies from pinned memory, measured at load."""
        return self._gpu.pcie

    @property
    def registered_bytes(self) -> int:
        """Bytes of experts that are copied without the CPU, so far."""
        return self._weights.registered_bytes

    def ready(self, wait_s: float) -> None:
        """Begin to register the experts' memory, now that it is filled; wait up to `wait_s`."""
        self._weights.register(wait_s)

    def close(self) -> None:
        """End the copies, and what has been registered. Idempotent."""
        self._weights.close()

    def _finish(self, known: LayerExperts, x: Tensor, weights: Tensor) -> Tensor:
        """Queue a layer whose ids have arrived; returns its sum (T, H)."""
        pairs = RoutedPairs(self._memory.ids[: x.shape[0]].numpy(), self._num_experts)
        ahead = self._ahead.buffers if self._ahead.layer == known.number else {}
        plan = self._split(known, pairs, x, ahead)
        by_cpu = self._start_cpu(known.call, plan, x) if plan.cpu else None
        out = x.new_zeros(x.shape)  # (T, H)
        used = [expert for expert in ahead if expert in plan.resident]
        self._weights.release([b for e, b in self._ahead.buffers.items() if e not in used])
        self._ahead = _Ahead(-1, {})
        if plan.gpu:
            early = {expert: ahead[expert] for expert in used}
            self._run_gpu(out, known, plan, early, pairs, x, weights)
        self._start_ahead(self._following.get(known.number), x.shape[0])
        if by_cpu is None:
            return out
        self._streams.main.wait_for(self._memory.returned)
        return out.add_(by_cpu)

    def _split(
        self, known: LayerExperts, pairs: RoutedPairs, x: Tensor, ahead: dict[int, int]
    ) -> Split:
        """Split the layer's chosen experts."""
        chosen = pairs.chosen
        if known.host is None:
            plan = Split((), tuple(chosen.tolist()), 0, float("nan"))
        else:
            is_in_vram = self._slots_of(known) >= 0
            is_in_vram[list(ahead)] = True
            counts, is_direct = pairs.counts[chosen], self._weights.is_direct(known.host.last())
            costs = costs_of(
                known.parts, self.rates, self._gpu, counts, x.nbytes, is_registered=is_direct
            )
            by_index = split(costs, is_in_vram[chosen])
            plan = by_index._replace(
                gpu=tuple(chosen[list(by_index.gpu)].tolist()),
                cpu=tuple(chosen[list(by_index.cpu)].tolist()),
            )
        self._last_tokens[known.number] = x.shape[0]
        self.tally.splits[known.number] = plan
        self.tally.cpu += len(plan.cpu)
        return plan

    def _slots_of(self, known: LayerExperts) -> NDArray[np.int32]:
        """List the VRAM slots of a layer's experts; -1 = none."""
        if self._resident is None:
            return np.full(self._num_experts, -1, np.int32)
        return self._resident.table[known.index, : self._num_experts]

    def _start_cpu(self, call: _C.HostExpertCall, plan: Split, x: Tensor) -> Tensor:
        """Queue the CPU's sum (T, H), ready with `returned`. The ids must have arrived."""
        host, memory, num_tokens = self._streams.host, self._memory, x.shape[0]
        memory.left_out.fill_(-1)
        memory.left_out[list(plan.gpu)] = 0
        by_cpu = torch.empty_like(x)
        self._alive = (*self._alive, by_cpu)
        call.num_tokens = num_tokens
        host.copy(memory.x[:num_tokens], x)
        host.launch(call)
        host.copy(by_cpu, memory.out[:num_tokens])
        memory.returned = host.record()
        return by_cpu

    def _run_gpu(
        self,
        out: Tensor,
        known: LayerExperts,
        plan: Split,
        early: dict[int, int],
        pairs: RoutedPairs,
        x: Tensor,
        weights: Tensor,
    ) -> None:
        """Queue the GPU's part, added to `out`. early: buffers of experts that are on their way."""
        assert known.host is not None, known
        stream = self._weights
        waiting = deque(known.host.parts(expert) for expert in plan.streamed)
        buffers = stream.next_buffers(len(waiting))
        self._start(waiting, len(waiting))
        slot_of = self._slots_of(known)
        in_slots = [expert for expert in plan.resident if expert not in early]
        groups: list[_Group] = []
        if self._resident is not None:
            slots = [int(slot_of[expert]) for expert in in_slots]
            groups += self._groups(in_slots, slots, self._resident.slots, pairs)
        groups += self._groups([*early], [*early.values()], stream.data, pairs)
        # Behind those of `early`, since buffers are freed in the order in which they were filled.
        groups += self._groups([*plan.streamed], buffers, stream.data, pairs, is_streamed=True)
        self._count(known, len(in_slots), len(early), len(plan.streamed))
        tables = pairs.tables(
            [(group.experts, group.slots) for group in groups],
            self._memory.tables,
            lambda t: t.to(self._device, non_blocking=True),  # torch's stream is the main one
        )
        places = places_of(tables.pairs, (x.shape[0], weights.shape[1]))
        states = LayerStates(x.bfloat16(), weights, tables.pairs, places, out)
        for group, on_gpu in zip(groups, tables.groups, strict=True):
            is_in_buffers = group.data is stream.data
            if is_in_buffers:
                self._start(waiting, min(len(waiting), group.num_waiting))
                stream.wait_for(group.slots[-1])
            layout = known.host.layout if is_in_buffers else known.host.layout.packed
            self._add_experts(states, on_gpu, group.data, layout, tables.tile_rows)
            if is_in_buffers:
                stream.release(group.slots)

    def _groups(
        self,
        experts: list[int],
        slots: list[int],
        data: Tensor,
        pairs: RoutedPairs,
        *,
        is_streamed: bool = False,
    ) -> list[_Group]:
        counts = pairs.counts[experts].tolist()
        return [
            _Group(
                experts[part],
                slots[part],
                data,
                len(experts) - part.stop if is_streamed else 1 << 30,
            )
            for part in cut_groups(counts, self._group_size, self._max_tokens)
        ]

    def _count(self, known: LayerExperts, in_slots: int, early: int, streamed: int) -> None:
        tally = self.tally
        tally.resident += in_slots
        tally.ahead += early
        tally.streamed += early + streamed
        tally.streamed_bytes += (early + streamed) * sum(part.num_bytes for part in known.parts)

    def _start(self, waiting: "deque[list[SlotPart]]", num_left: int) -> None:
        """Start copies until `num_left` are waiting; of those that only queue, all that fit."""
        while waiting and (
            len(waiting) > num_left
            or (self._weights.can_start and self._weights.is_direct(waiting[0]))
        ):
            self._weights.start(waiting.popleft())

    def _start_ahead(self, layer: int | None, num_tokens: int) -> None:
        """Start copies for a layer that comes next: what the GPU got in the last step like this."""
        last = self.tally.splits.get(layer) if layer is not None else None
        if layer is None or last is None or 2 * num_tokens < self._last_tokens[layer]:
            return
        known, buffers = self._layers[layer], dict[int, int]()
        slot_of = self._slots_of(known)
        for expert in last.gpu:
            assert known.host is not None, layer
            parts = known.host.parts(expert)
            if not self._weights.can_start or not self._weights.is_direct(parts):
                break
            if slot_of[expert] < 0:
                buffers[expert] = self._weights.start(parts)
        self._ahead = _Ahead(layer, buffers)

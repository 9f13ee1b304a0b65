"""Prefill on the CPU and a GPU at once: experts are split by predicted time, layer by layer.

The host reads a layer's ids and splits its experts (planning.prefill_split). The CPU's go to the
native kernels through a stream of host calls. The GPU's are resident in VRAM slots or streamed over
the link (weight_stream), dequantized and multiplied there. Sums are in the order of the split, so
results depend on rates and on what is resident, never on timing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.device.streams import Event, Stream, host_empty
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.gpu.weight_stream import SlotPart, WeightStream
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.prefill_split import Split, costs_of, split
from hybridmoe.planning.rates import Rates

if TYPE_CHECKING:
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

__all__ = [
    "AddExpert",
    "ExpertTally",
    "ResidentExperts",
    "StreamedExperts",
    "Streams",
    "slot_parts",
]

# out, x, rows, factor, slot, layout: `kernels.triton.expert_prefill.add_expert`
AddExpert = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, "SlotLayout"], None]


class ResidentExperts(NamedTuple):
    """Experts in VRAM slots. Does not change during a step."""

    slots: Tensor  # (slots, bytes) uint8, on the GPU
    table: NDArray[np.int32]  # (L, E or more): slots by layer index; -1 = none


class Streams(NamedTuple):
    """Streams that run at once."""

    main: Stream  # the GPU's products
    host: Stream  # the CPU's part, and copies of its inputs and result
    link: Stream  # copies of experts alone


@dataclass(frozen=True, slots=True)
class _Layer:
    """Experts of one layer, and the CPU's call."""

    index: int
    experts: ExpertWeights
    layout: "SlotLayout | None"
    parts: tuple[Part, ...]  # of one expert
    call: _C.HostExpertCall


@dataclass(slots=True)
class _HostMemory:
    """Host memory of a layer's CPU part."""

    x: Tensor  # (max_tokens, H) f32
    ids: Tensor  # (max_tokens, k) int32
    weights: Tensor  # (max_tokens, k) f32
    out: Tensor  # (max_tokens, H) f32
    pairs: Tensor  # (max_tokens k) int64
    left_out: Tensor  # (E) int32: 0 = the GPU computes the expert, else -1
    returned: Event  # the CPU's result has been copied from this memory


@dataclass(slots=True)
class ExpertTally:
    """Numbers of experts computed by the CPU and the GPU, and the last step's splits by layer."""

    cpu: int = 0
    resident: int = 0
    streamed: int = 0
    streamed_bytes: int = 0
    splits: dict[int, Split] = field(default_factory=dict)


class StreamedExperts:
    """Prefill backend of `HybridExperts`. Not thread-safe. Must be closed."""

    def __init__(
        self,
        experts: RoutedExperts,
        layouts: "Sequence[SlotLayout | None]",
        add_expert: AddExpert,
        rates: Rates,
        streams: Streams,
        device: torch.device,
        *,
        max_tokens: int,
        resident: ResidentExperts | None = None,
    ) -> None:
        """layouts: of slots by layer index; None = the CPU computes the layer.

        rates: with the GPU's. max_tokens: of a step. resident: experts in VRAM slots.
        """
        assert rates.gpu is not None, "rates without the GPU's"
        self._add_expert = add_expert
        self._rates, self._gpu = rates, rates.gpu
        self._streams, self._device = streams, device
        self._resident = resident
        self._num_experts = experts.num_experts
        self._memory = self._make_memory(experts, max_tokens)
        self._layers = {
            number: _Layer(
                index,
                weights,
                layout,
                tuple(_part(w) for w in weights),
                _call(self._memory, weights, max_tokens, experts.top_k),
            )
            for index, ((number, weights), layout) in enumerate(
                zip(experts.layers.items(), layouts, strict=True)
            )
        }
        largest = max((layout.slot_bytes for layout in layouts if layout), default=0)
        self._weights = WeightStream(largest, device, streams.main, streams.link)
        self._alive: tuple[Tensor, ...] = ()
        self.tally = ExpertTally()

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Start one layer on the GPU; see `ExpertBackend.submit`. Waits for the ids.

        x must not change until the result is taken.
        Numeric: the GPU multiplies as `kernels.triton.linear`; sums over experts in f32.
        """
        main, memory, num_tokens = self._streams.main, self._memory, x.shape[0]
        known = self._layers[layer]
        memory.returned.wait()
        main.copy(memory.ids[:num_tokens], ids)
        main.copy(memory.weights[:num_tokens], weights)
        main.record().wait()
        groups = _Groups(memory.ids[:num_tokens].numpy(), self._num_experts)
        plan = self._split(layer, known, groups, x)
        by_cpu = self._start_cpu(known.call, plan, x) if plan.cpu else None
        out = x.new_zeros(x.shape)  # (T, H)
        if plan.gpu:
            self._run_gpu(out, layer, plan, groups, x, weights)
        if by_cpu is None:
            return Ready(out)
        return _WithCpuPart(out, by_cpu, memory.returned, main)

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

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._weights.close()

    def _make_memory(self, experts: RoutedExperts, max_tokens: int) -> _HostMemory:
        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return host_empty(shape, dtype, self._device)

        hidden, top_k = experts.hidden, experts.top_k
        return _HostMemory(
            x=empty(torch.float32, max_tokens, hidden),
            ids=empty(torch.int32, max_tokens, top_k),
            weights=empty(torch.float32, max_tokens, top_k),
            out=empty(torch.float32, max_tokens, hidden),
            pairs=empty(torch.int64, max_tokens * top_k),
            left_out=torch.empty(experts.num_experts, dtype=torch.int32),
            returned=self._streams.host.record(),
        )

    def _split(self, layer: int, known: _Layer, groups: "_Groups", x: Tensor) -> Split:
        """Split the layer's chosen experts, and count."""
        chosen = groups.chosen
        if known.layout is None:
            plan = Split((), tuple(chosen.tolist()), 0, float("nan"))
        else:
            is_resident = np.zeros(self._num_experts, np.bool_)
            if self._resident is not None:
                is_resident = self._resident.table[known.index, : self._num_experts] >= 0
            x_bytes = x.nbytes
            costs = costs_of(known.parts, self._rates, self._gpu, groups.counts[chosen], x_bytes)
            by_index = split(costs, is_resident[chosen])
            plan = by_index._replace(
                gpu=tuple(chosen[list(by_index.gpu)].tolist()),
                cpu=tuple(chosen[list(by_index.cpu)].tolist()),
            )
        tally = self.tally
        tally.splits[layer] = plan
        tally.cpu += len(plan.cpu)
        tally.resident += len(plan.resident)
        tally.streamed += len(plan.streamed)
        tally.streamed_bytes += len(plan.streamed) * sum(part.num_bytes for part in known.parts)
        return plan

    def _start_cpu(self, call: _C.HostExpertCall, plan: Split, x: Tensor) -> Tensor:
        """Queue the CPU's sum (T, H), ready with `returned`. `main` must have been waited for."""
        host, memory, num_tokens = self._streams.host, self._memory, x.shape[0]
        memory.left_out.fill_(-1)
        memory.left_out[list(plan.gpu)] = 0
        by_cpu = torch.empty_like(x)
        self._alive = (x, by_cpu)  # kept alive for the host stream
        call.num_tokens = num_tokens
        host.copy(memory.x[:num_tokens], x)
        host.launch(call)
        host.copy(by_cpu, memory.out[:num_tokens])
        memory.returned = host.record()
        return by_cpu

    def _run_gpu(
        self,
        out: Tensor,
        layer: int,
        plan: Split,
        groups: "_Groups",
        x: Tensor,
        weights: Tensor,
    ) -> None:
        """Queue the GPU's part, added to `out`."""
        known = self._layers[layer]
        assert known.layout is not None, layer
        sizes = [int(groups.counts[expert]) for expert in plan.gpu]
        chosen = self._memory.pairs[: sum(sizes)]
        np.concatenate([groups.pairs_of(expert) for expert in plan.gpu], out=chosen.numpy())
        pairs = chosen.to(self._device, non_blocking=True)  # torch's stream is the main one
        tokens = torch.split(pairs // weights.shape[1], sizes)
        factors = torch.split(weights.reshape(-1)[pairs, None], sizes)
        work = list(zip(plan.gpu, tokens, factors, strict=True))
        for expert, rows, factor in work[: plan.num_resident]:
            assert self._resident is not None, expert
            slot = self._resident.slots[int(self._resident.table[known.index, expert])]
            self._add_expert(out, x, rows, factor, slot, known.layout)
        for expert, rows, factor in work[plan.num_resident :]:
            with self._weights.stream(slot_parts(known.experts, known.layout, expert)) as slot:
                self._add_expert(out, x, rows, factor, slot, known.layout)


class _WithCpuPart(Pending):
    """Sum of the GPU's part and the CPU's, which is being copied to the GPU."""

    __slots__ = ("_by_cpu", "_main", "_out", "_returned")

    def __init__(self, out: Tensor, by_cpu: Tensor, returned: Event, main: Stream) -> None:
        self._out, self._by_cpu, self._returned, self._main = out, by_cpu, returned, main

    def result(self) -> Tensor:
        self._main.wait_for(self._returned)
        return self._out.add_(self._by_cpu)


class _Groups:
    """(Token, rank) pairs of a step, grouped by expert."""

    def __init__(self, ids: NDArray[np.int32], num_experts: int) -> None:
        flat = ids.reshape(-1)
        self._pairs = flat.argsort(kind="stable")  # id -1 first
        self.counts = np.bincount(flat[flat >= 0], minlength=num_experts)
        assert len(self.counts) == num_experts, f"expert {len(self.counts) - 1} of {num_experts}"
        self._ends = (flat < 0).sum() + self.counts.cumsum()
        self.chosen = np.flatnonzero(self.counts)

    def pairs_of(self, expert: int) -> NDArray[np.int64]:
        """Return an expert's pairs, as token * k + rank."""
        end = self._ends[expert]
        return self._pairs[end - self.counts[expert] : end]


def slot_parts(experts: ExpertWeights, layout: "SlotLayout", expert: int) -> list[SlotPart]:
    """List the bytes of one expert and their offsets in a slot."""
    offsets = (0, layout.up_offset, layout.down_offset)
    return [
        SlotPart(offset, w.data.reshape(w.batch, -1)[expert])
        for offset, w in zip(offsets, experts, strict=True)
    ]


def _part(w: QuantMatrix) -> Part:
    return Part(w.type, w.rows * w.cols, w.num_bytes // w.batch)


def _call(
    memory: _HostMemory, experts: ExpertWeights, max_tokens: int, top_k: int
) -> _C.HostExpertCall:
    gate, up, down = (w.handle for w in experts)
    return _C.HostExpertCall(
        memory.x.data_ptr(),
        memory.ids.data_ptr(),
        memory.weights.data_ptr(),
        memory.out.data_ptr(),
        max_tokens,
        top_k,
        gate,
        up,
        down,
        memory.left_out.data_ptr(),
    )

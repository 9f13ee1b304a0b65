"""Measured rates of one-token steps on a GPU, for the cost model of decoding.

Measured at load on the model's own weights, once they are in VRAM and their kernels are compiled:
dense products of each type, experts in slots, and the hand-over of a layer to the CPU and back.
Each is a CUDA graph, as in a decode step, of so many bytes that the GPU's cache does not hold them.
That takes some milliseconds each.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybridmoe.device.streams import Stream
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.gpu.staging import StepMemory
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.matmul import batched_linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.planning.rates import GpuRates

__all__ = ["DecodeMeter", "DecodeRates", "DenseMatrices", "measure_decode"]

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # as `CudaDevice.capture`

_ROUNDS = 3  # the fastest counts: other work on the machine only ever slows it
_REPEATS = 4  # of a graph beyond its first, which alone pays for the launch and the wait
_GRAPH_BYTES, _GRAPH_LAUNCHES = 192 << 20, 16  # of a graph: at most one more than needed
_HAND_OVERS = 16  # of a graph


class DecodeRates(NamedTuple):
    """Rates of one-token steps; what could not be measured is missing."""

    one_token: Mapping[QuantType, float]  # bytes/s of the file, by type
    slots: float | None  # bytes/s of the file, of experts in slots
    hand_over_s: float | None  # of a layer

    def added_to(self, gpu: GpuRates) -> GpuRates:
        """Replace what was measured."""
        seconds = gpu.hand_over_s if self.hand_over_s is None else self.hand_over_s
        slots = gpu.slots if self.slots is None else self.slots
        one_token = {**gpu.one_token, **self.one_token}
        return replace(gpu, one_token=one_token, slots=slots, hand_over_s=seconds)


class DenseMatrices:
    """Dense matrices of one GPU, noted as they are uploaded."""

    def __init__(self) -> None:
        self._by_type: dict[QuantType, list[tuple[DeviceMatrix, int]]] = {}

    def note(self, on_gpu: DeviceMatrix, w: QuantMatrix) -> None:
        """Add a matrix."""
        self._by_type.setdefault(w.type, []).append((on_gpu, w.num_bytes))

    def kinds(self) -> str:
        """Name the types, with the number of matrices and of bytes."""
        return " ".join(
            f"{kind.name}:{len(found)}:{sum(size for _, size in found)}"
            for kind, found in self._by_type.items()
        )

    def sample(self) -> dict[QuantType, list[tuple[DeviceMatrix, int]]]:
        """Choose neighbours of each type, with their bytes in the file.

        From the middle of the model: its first layer is unlike the others, and the output head too.
        """
        return {kind: _some(found[len(found) // 2 :]) for kind, found in self._by_type.items()}

    def forget(self) -> None:
        """Drop all matrices, so that VRAM is freed with the model."""
        self._by_type.clear()


def _some(
    found: list[tuple[DeviceMatrix, int]],
) -> list[tuple[DeviceMatrix, int]]:
    """Take as many as a graph needs."""
    taken: list[tuple[DeviceMatrix, int]] = []
    for pair in found[:_GRAPH_LAUNCHES]:
        if sum(size for _, size in taken) >= _GRAPH_BYTES:
            break
        taken.append(pair)
    return taken


@dataclass(slots=True)
class DecodeMeter:
    """Stop watch of graphs. It keeps them: those of one memory pool have to end together."""

    main: Stream
    capture: Capture
    clock: Callable[[], float] = time.perf_counter
    _graphs: list[Callable[[], None]] = field(default_factory=list)

    def seconds(self, function: Callable[[], None]) -> float:
        """Measure the time of queued work, without its launch and the wait for it."""
        graph = self.capture(function)
        self._graphs.append(graph)
        once, more = (self._fastest(graph, number, self._wait) for number in (1, 1 + _REPEATS))
        return (more - once) / _REPEATS if more > once else once

    def seconds_served(self, function: Callable[[], None], serve: Callable[[], None]) -> float:
        """Measure the time of queued work that waits for the host, with launch and wait.

        serve: lets it end.
        """
        graph = self.capture(function)
        self._graphs.append(graph)

        def wait() -> None:
            serve()
            self._wait()

        return self._fastest(graph, 1, wait)

    def _wait(self) -> None:
        self.main.synchronize()

    def _fastest(self, graph: Callable[[], None], number: int, wait: Callable[[], None]) -> float:
        seconds = []
        for _ in range(1 + _ROUNDS):
            started = self.clock()
            for _ in range(number):
                graph()
            wait()
            seconds.append(self.clock() - started)
        return min(seconds[1:])  # the first is a warm-up


@torch.inference_mode()
def measure_decode(
    meter: DecodeMeter,
    experts: RoutedExperts,
    dense: DenseMatrices,
    slots: SlotPool | None,
    hand_over: HandOver | None,
    device: torch.device,
) -> DecodeRates:
    """Measure an idle GPU, between steps. Errors: torch's if the GPU fails."""
    one_token = {kind: _products(meter, found) for kind, found in dense.sample().items()}
    return DecodeRates(
        one_token,
        None if slots is None else _slots(meter, experts, slots, device),
        None if hand_over is None else _hand_over(meter, experts, hand_over, device),
    )


def _products(meter: DecodeMeter, found: list[tuple[DeviceMatrix, int]]) -> float:
    """Measure the rate of products with one token."""
    states = [torch.full((w.batch, 1, w.cols), 0.01, device=w.data.device) for w, _ in found]

    def run() -> None:
        for x, (w, _) in zip(states, found, strict=True):
            batched_linear(x, w)

    return sum(num_bytes for _, num_bytes in found) / meter.seconds(run)


def _slots(
    meter: DecodeMeter, experts: RoutedExperts, slots: SlotPool, device: torch.device
) -> float | None:
    """Measure the rate of experts in slots, a layer's together; None if no slot is filled."""
    calls: list[tuple[int, Tensor]] = []
    num_bytes = 0
    for number, weights in experts.layers.items():
        resident = np.flatnonzero(slots.slot_of(number) >= 0)[: experts.top_k]
        if not len(resident) or num_bytes >= _GRAPH_BYTES or len(calls) >= _GRAPH_LAUNCHES:
            continue
        ids = torch.full((1, experts.top_k), -1, dtype=torch.int32)
        ids[0, : len(resident)] = torch.from_numpy(resident)
        calls.append((number, ids.to(device)))
        num_bytes += len(resident) * weights.expert_bytes
    if not calls:
        return None
    x = torch.full((1, experts.hidden), 0.01, device=device)
    weights_of = torch.ones((1, experts.top_k), device=device)

    def run() -> None:
        for number, chosen in calls:
            slots.compute(number, x, chosen, weights_of)

    return num_bytes / meter.seconds(run)


def _hand_over(
    meter: DecodeMeter, experts: RoutedExperts, hand_over: HandOver, device: torch.device
) -> float:
    """Measure a layer's way to the host and back, where nothing is computed."""
    memory = StepMemory(1, experts, device)
    staged, host_ids, call = memory.staged, memory.ids[0], memory.make_call(0, 0)
    x, y = (torch.zeros((1, experts.hidden), device=device) for _ in range(2))
    ids = torch.full((1, experts.top_k), -1, dtype=torch.int32, device=device)
    weights = torch.zeros((1, experts.top_k), device=device)

    def run() -> None:
        if not meter.main.is_captured:
            return  # a trial before the capture, for which nobody would answer
        for _ in range(_HAND_OVERS):
            hand_over.send(x, ids, weights, staged, host_ids)
            hand_over.add_to(y, staged, x)

    return meter.seconds_served(run, lambda: hand_over.serve([call] * _HAND_OVERS)) / _HAND_OVERS

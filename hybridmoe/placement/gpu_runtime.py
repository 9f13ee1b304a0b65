"""Runtime of one GPU: its device, its streams, and its measured rates.

All that placement takes from CUDA besides kernels. Tests without a GPU replace `GpuRuntime` in
`placement.gpu` (tests/support/interpreted_gpu.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from hybridmoe import _C
from hybridmoe.device.cuda import CudaDevice, IsRight
from hybridmoe.device.streams import CudaStream, Stream
from hybridmoe.experts.gpu.calibrate import measure_gpu, with_cpu
from hybridmoe.experts.gpu.calibrate_decode import (
    DecodeMeter,
    DecodeRates,
    DenseMatrices,
    measure_decode,
)
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.host_registration import CudaRegistrar, HostRegistration, Registrar, Span
from hybridmoe.experts.gpu.prefill_experts import Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.expert_prefill import add_experts
from hybridmoe.placement.kept_rates import kept_decode_rates, kept_rates, machine_key
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.self_check import SelfCheck
from hybridmoe.planning.rates import Rates

__all__ = ["GpuRuntime", "GpuStreams", "Measured", "gpu_identity"]


class GpuStreams(NamedTuple):
    """Streams of a GPU; each does its work in order, beside the others."""

    main: Stream  # torch's current stream
    host: Stream  # experts computed by the CPU
    uploads: Stream  # experts that become resident
    link: Stream  # streamed experts of a prompt

    @property
    def prefill(self) -> Streams:
        """The streams that a prompt's experts use."""
        return Streams(self.main, self.host, self.link)


class Measured(NamedTuple):
    """Rates of the machine, and the threads that copy experts for the GPU."""

    rates: Rates
    threads: _C.CopyThreads


def gpu_identity(device: torch.device) -> str:
    """Name one GPU of a machine: of two of the same name, one may have the slower link."""
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.name} {getattr(facts, 'uuid', device.index)}"


class GpuRuntime:
    """A CUDA GPU, as placement uses it."""

    def __init__(self, gpu: CudaGpu) -> None:
        self.torch = torch.device("cuda", gpu.number)

    def device(self, is_on_cpu: Callable[[str], bool], is_right: IsRight) -> CudaDevice:
        """Make the device of the dense weights; arguments as of `CudaDevice`."""
        return CudaDevice(self.torch, is_on_cpu, is_right)

    def self_check(self, found: KernelChecks) -> SelfCheck:
        """Make the check of this GPU's kernels, which notes in `found`."""
        return SelfCheck(CudaDevice(self.torch), found)

    def open_streams(self) -> GpuStreams:
        """Create the streams; torch's error if the GPU fails."""
        return GpuStreams(CudaStream(), *(CudaStream(self._new_stream()) for _ in range(3)))

    def open_hand_over(self, experts: RoutedExperts, main: Stream) -> HandOver | None:
        """Make the hand-over of captured steps; None if GPU and host do not see each other's."""
        hand_over = HandOver(main, self.torch)
        return hand_over if hand_over.works(experts.hidden, experts.top_k) else None

    def measure(self, experts: ExpertWeights, layout: SlotLayout, streams: Streams) -> Measured:
        """Measure the rates of the GPU and of the CPU, in about a second, once a day."""

        def measure() -> tuple[Rates, int]:
            gpu = measure_gpu(experts, layout, add_experts, streams, self.torch)
            return with_cpu(gpu.rates, experts), gpu.threads.num_threads

        key = machine_key(gpu_identity(self.torch), experts)
        rates, num_threads = kept_rates(key, measure)
        return Measured(rates, _C.CopyThreads(num_threads))

    def measure_decode(
        self,
        experts: RoutedExperts,
        dense: DenseMatrices,
        slots: SlotPool | None,
        hand_over: HandOver | None,
        main: Stream,
    ) -> DecodeRates:
        """Measure the rates of decoding on the weights in VRAM, once a day: milliseconds."""

        def measure() -> DecodeRates:
            # A device of its own: its graphs and their memory are gone after this.
            meter = DecodeMeter(main, CudaDevice(self.torch).capture)
            return measure_decode(meter, experts, dense, slots, hand_over, self.torch)

        name = machine_key(gpu_identity(self.torch), experts.by_index[0])
        num_slots = 0 if slots is None else len(slots.slots)
        key = f"{name} {dense.kinds()} {num_slots} {hand_over is not None}"
        return kept_decode_rates(key, measure)

    def register(
        self, spans: Sequence[Span], most_bytes: int, least_rate: float
    ) -> HostRegistration:
        """Make the registration of experts' memory, in this order, to be begun later."""
        return HostRegistration(
            spans, self.registrar(), most_bytes=most_bytes, least_rate=least_rate
        )

    def registrar(self) -> Registrar:
        """Make the registrar of host memory."""
        return CudaRegistrar(self.torch)

    def _new_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.torch)  # type: ignore[no-untyped-call]

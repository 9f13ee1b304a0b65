"""A GPU for tests on machines without one: Triton's interpreter, and streams that run in Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from fake_streams import FakeStream

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.experts.gpu.prefill_experts import Streams
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.llm import load as loading
from hybridmoe.placement import gpu as gpu_placement
from hybridmoe.placement.gpu_runtime import GpuRuntime, GpuStreams
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

GPU = CudaGpu(0, "Test GPU", (9, 0), 24 << 30, 20 << 30)
NO_GPU = NoGpu("the CPU was asked for", is_silent=True)


class InterpretedDevice(CudaDevice):
    """`CudaDevice` whose kernels run in Triton's interpreter, on tensors of the CPU."""

    def __init__(self, is_on_cpu: Callable[[str], bool] = lambda name: False) -> None:
        super().__init__(torch.device("cpu"), is_on_cpu)

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function


class InterpretedRuntime(GpuRuntime):
    """`GpuRuntime` without a GPU; its rates are made up."""

    def __init__(self, gpu: CudaGpu) -> None:
        self.torch = torch.device("cpu")

    def device(self, is_on_cpu: Callable[[str], bool]) -> CudaDevice:
        return InterpretedDevice(is_on_cpu)

    def open_streams(self) -> GpuStreams:
        main = FakeStream(is_lazy=False, is_current=True)
        return GpuStreams(main, *(FakeStream(is_lazy=False) for _ in range(3)))

    def measure(self, experts: ExpertWeights, layout: SlotLayout, streams: Streams) -> Rates:
        gpu = GpuRates(read=1e9, ops=1e12, pcie=1e9)
        return rates_of(isa.active(), dram=1e10, peak_ops=1e12, gpu=gpu)


def gpu_device(is_on_cpu: Callable[[str], bool] = lambda name: False) -> CudaDevice:
    """The device of this machine's GPU, or the interpreter's."""
    if torch.cuda.is_available():
        return CudaDevice(torch.device("cuda"), is_on_cpu)
    return InterpretedDevice(is_on_cpu)


def use_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `hybridmoe.load` use this machine's GPU, or the interpreter in its place."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(loading, "choose_gpu", lambda name: NO_GPU if name == "cpu" else GPU)
        monkeypatch.setattr(gpu_placement, "GpuRuntime", InterpretedRuntime)

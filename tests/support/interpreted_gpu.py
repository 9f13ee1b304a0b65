"""A GPU for tests on machines without one: Triton's interpreter, and streams that run in Python."""

import threading
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from fake_registrar import FakeRegistrar
from fake_streams import FakeStream

from hybridmoe import _C
from hybridmoe.config import ModelConfig
from hybridmoe.device.cuda import CudaDevice, IsRight
from hybridmoe.device.streams import Stream
from hybridmoe.experts.gpu.calibrate_decode import DecodeRates, DenseMatrices
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.prefill_experts import Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.llm import load as loading
from hybridmoe.placement import gpu as gpu_placement
from hybridmoe.placement.gpu_runtime import GpuRuntime, GpuStreams, Measured
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.self_check import SelfCheck
from hybridmoe.planning.rates import GpuRates, rates_of

GPU = CudaGpu(0, "Test GPU", (9, 0), 24 << 30, 20 << 30)
NO_GPU = NoGpu("the CPU was asked for", is_silent=True)


class GraphStream(FakeStream):
    """Current stream of an interpreted GPU, whose graphs run in a thread of their own."""

    def __init__(self) -> None:
        super().__init__(is_lazy=False, is_current=True)
        self.hand_over: HandOver | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def record_graph(self, function: Callable[[], None]) -> None:
        """Call a function as at capture: what it hands over is released, not computed."""
        assert self.hand_over is not None
        has_ended = threading.Event()
        release = self.hand_over._native.release
        nods = threading.Thread(target=release, args=(has_ended.is_set,))
        nods.start()
        try:
            self._run(function)
        finally:
            has_ended.set()
            nods.join()

    def start(self, function: Callable[[], None]) -> None:
        """Start a graph."""
        self.synchronize()
        self._thread = threading.Thread(target=self._try, args=(function,), name="graph")
        self._thread.start()

    def is_idle(self) -> bool:
        if self._error is not None:
            raise self._error
        return self._thread is None or not self._thread.is_alive()

    def synchronize(self) -> None:
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()
            self._thread, error, self._error = None, self._error, None
            if error is not None:
                raise error
        super().synchronize()

    def _try(self, function: Callable[[], None]) -> None:
        try:
            with torch.inference_mode():
                self._run(function)
        except Exception as error:
            self._error = error

    def _run(self, function: Callable[[], None]) -> None:
        self.is_captured = True
        try:
            function()
        finally:
            self.is_captured = False


class InterpretedDevice(CudaDevice):
    """`CudaDevice` whose kernels run in Triton's interpreter, on tensors of the CPU."""

    def __init__(
        self,
        is_on_cpu: Callable[[str], bool] = lambda name: False,
        is_right: IsRight = lambda on_gpu, w, name: True,
        main: GraphStream | None = None,
    ) -> None:
        """main: runs graphs beside the host; None = at once."""
        super().__init__(torch.device("cpu"), is_on_cpu, is_right)
        self._main = main

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def synchronize(self) -> None:
        if self._main is not None:
            self._main.synchronize()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        main = self._main
        if main is None or main.hand_over is None:
            return function
        main.record_graph(function)
        return lambda: main.start(function)


class Trusting(SelfCheck):
    """A self-check that checks nothing."""

    def check_network(self, config: ModelConfig, kv_type: str) -> None:
        pass

    def is_right(self, on_gpu: DeviceMatrix, w: QuantMatrix, name: str) -> bool:
        return True

    def wrong_layers(self, experts: RoutedExperts, pinned: Container[int]) -> frozenset[int]:
        return frozenset()


class InterpretedRuntime(GpuRuntime):
    """`GpuRuntime` without a GPU; its rates are made up."""

    checks_itself = False  # the interpreter takes seconds for it

    def __init__(self, gpu: CudaGpu) -> None:
        self.torch = torch.device("cpu")
        self._main = GraphStream()

    def device(self, is_on_cpu: Callable[[str], bool], is_right: IsRight) -> CudaDevice:
        return InterpretedDevice(is_on_cpu, is_right, self._main)

    def self_check(self, found: KernelChecks) -> SelfCheck:
        return (SelfCheck if self.checks_itself else Trusting)(InterpretedDevice(), found)

    def open_streams(self) -> GpuStreams:
        return GpuStreams(self._main, *(FakeStream(is_lazy=False) for _ in range(3)))

    def open_hand_over(self, experts: RoutedExperts, main: Stream) -> HandOver | None:
        self._main.hand_over = HandOver(main, self.torch)
        return self._main.hand_over

    def measure(self, experts: ExpertWeights, layout: SlotLayout, streams: Streams) -> Measured:
        gpu = GpuRates(read=1e9, ops=1e12, pcie=1e9)
        rates = rates_of(isa.active(), dram=1e10, peak_ops=1e12, gpu=gpu)
        return Measured(rates, _C.CopyThreads(1))

    def measure_decode(
        self,
        experts: RoutedExperts,
        dense: DenseMatrices,
        slots: SlotPool | None,
        hand_over: HandOver | None,
        main: Stream,
    ) -> DecodeRates:
        one_token = {kind: 2e9 for kind in dense.sample()}
        return DecodeRates(one_token, None if slots is None else 5e11, 20e-6)

    def registrar(self) -> FakeRegistrar:
        return FakeRegistrar()


def gpu_device(
    is_on_cpu: Callable[[str], bool] = lambda name: False,
    is_right: IsRight = lambda on_gpu, w, name: True,
) -> CudaDevice:
    """The device of this machine's GPU, or the interpreter's."""
    if torch.cuda.is_available():
        return CudaDevice(torch.device("cuda"), is_on_cpu, is_right)
    return InterpretedDevice(is_on_cpu, is_right)


def use_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `hybridmoe.load` use this machine's GPU, or the interpreter in its place."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(
            loading, "choose_gpus", lambda name: NO_GPU if name == "cpu" else (GPU,)
        )
        monkeypatch.setattr(gpu_placement, "GpuRuntime", InterpretedRuntime)


def gpu_runtime() -> GpuRuntime:
    """The runtime of this machine's GPU, or the interpreter's."""
    return GpuRuntime(GPU) if torch.cuda.is_available() else InterpretedRuntime(GPU)

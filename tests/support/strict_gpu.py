"""A GPU of the interpreter whose tensors cannot be mixed with the CPU's, as on a card.

The interpreter's tensors are the CPU's, so that a forgotten upload goes unnoticed. Here a tensor of
the GPU says that its device is torch's `meta`; its numbers are in a tensor of the CPU that it
holds. An operation on tensors of both devices is an error, except copies, indices and scalars.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interpreted_gpu import GPU, NO_GPU, GraphStream, InterpretedDevice, InterpretedRuntime
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime import interpreter

from hybridmoe.device.cuda import CudaDevice, IsRight
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.llm import load as loading
from hybridmoe.placement import gpu as gpu_placement
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.self_check import SelfCheck

__all__ = ["META", "StrictDevice", "StrictTensor", "use_strict_gpu"]

META = torch.device("meta")
_CROSSING = ("copy_", "_to_copy", "to", "index", "index_put_")


class StrictTensor(Tensor):
    """A tensor of the GPU."""

    numbers: Tensor  # on the CPU

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "StrictTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=META,
        )
        made.numbers = numbers
        return made

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with torch.inference_mode(False):
            return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes strict tensors of what is made on the GPU or copied there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with torch.inference_mode(False):
            return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    ours = [t for t in given if isinstance(t, StrictTensor)]
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    theirs = [t for t in given if not isinstance(t, StrictTensor) and t.dim()]
    if ours and theirs and name not in _CROSSING:
        raise AssertionError(f"{func}: tensors of the GPU and of the CPU")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    on_cpu, named = tree_map(
        lambda t: t.numbers if isinstance(t, StrictTensor) else t, (args, kwargs)
    )
    result = func(*on_cpu, **named)
    is_ours = bool(ours) if device is None else torch.device(device) == META
    if name == "to" and device is not None and is_ours != bool(ours):
        result = result.clone()  # a copy to the other device is another tensor
    by_numbers = {id(t.numbers): t for t in ours}

    def wrapped(t: Any) -> Any:
        if not isinstance(t, Tensor) or isinstance(t, StrictTensor):
            return t
        if id(t) in by_numbers:
            return by_numbers[id(t)]
        return StrictTensor(t) if is_ours and name != "_local_scalar_dense" else t

    if name == "copy_":
        return args[0]
    return tree_map(wrapped, result)


class StrictDevice(InterpretedDevice):
    """`CudaDevice` on strict tensors."""

    def __init__(
        self,
        is_on_cpu: Callable[[str], bool] = lambda name: False,
        is_right: IsRight = lambda on_gpu, w, name: True,
        main: GraphStream | None = None,
    ) -> None:
        super().__init__(is_on_cpu, is_right, main)
        self.torch = META

    def active(self) -> TorchDispatchMode:
        return _Mode()

    def matrix(self, w: QuantMatrix, name: str) -> DeviceMatrix | QuantMatrix:
        with self.active():
            return super().matrix(w, name)

    def upload(self, t: Tensor) -> Tensor:
        with self.active():
            return super().upload(t)

    def empty_bytes(self, *shape: int) -> Tensor:
        with self.active():
            return super().empty_bytes(*shape)


class StrictRuntime(InterpretedRuntime):
    """`GpuRuntime` of a strict GPU, which checks itself."""

    def __init__(self, gpu: CudaGpu) -> None:
        super().__init__(gpu)
        self.torch = META

    def device(self, is_on_cpu: Callable[[str], bool], is_right: IsRight) -> CudaDevice:
        return StrictDevice(is_on_cpu, is_right, self._main)

    def self_check(self, found: KernelChecks) -> SelfCheck:
        return SelfCheck(StrictDevice(), found)


def use_strict_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `hybridmoe.load` use a strict GPU, not a real one."""
    unwrap, run = interpreter._unwrap_tensor, GraphStream._run

    def unwrapped(t: Any) -> Any:
        return t.numbers if isinstance(t, StrictTensor) else unwrap(t)

    def run_strictly(stream: GraphStream, function: Callable[[], None]) -> None:
        with _Mode():  # of the thread that runs a graph
            run(stream, function)

    monkeypatch.setattr(interpreter, "_unwrap_tensor", unwrapped)
    monkeypatch.setattr(GraphStream, "_run", run_strictly)
    monkeypatch.setattr(loading, "choose_gpus", lambda name: NO_GPU if name == "cpu" else (GPU,))
    monkeypatch.setattr(gpu_placement, "GpuRuntime", StrictRuntime)

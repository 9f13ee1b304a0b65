"""Two GPUs for tests: interpreted ones that fail where tensors of both meet, or this machine's.

All tensors of interpreted GPUs lie on the CPU, so a ledger notes whose they are: memory belongs to
the GPU that is active when it is made, and only copies lead out.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from interpreted_gpu import NO_GPU, GraphStream, InterpretedDevice, InterpretedRuntime
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridmoe.device.cuda import CudaDevice, IsRight
from hybridmoe.hardware.gpu import CudaGpu, Gpus
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.codebooks import codebooks
from hybridmoe.llm import load as loading
from hybridmoe.option import gpu_numbers
from hybridmoe.placement import gpu as gpu_placement

__all__ = ["Ledger", "WatchedGpu", "two_devices", "use_two_gpus"]


class Ledger:
    """Owners of tensors, and what crossed from one GPU to the other."""

    def __init__(self) -> None:
        self.crossings: list[tuple[int, ...]] = []  # shapes
        self.gpus: list[WatchedGpu] = []
        # Keeps the memory, so that no address is used twice. None: anybody's.
        self._owners: dict[int, tuple[WatchedGpu | None, torch.UntypedStorage]] = {}
        self._local = threading.local()
        self.give(codebooks(torch.device("cpu")), None)  # real GPUs have one each

    @property
    def active(self) -> "list[WatchedGpu]":
        """GPUs whose `active` the thread is in, the last one counts."""
        if not hasattr(self._local, "active"):
            self._local.active = []
        found: list[WatchedGpu] = self._local.active
        return found

    def owner(self, t: Tensor) -> "WatchedGpu | None":
        found = self._owners.get(t.untyped_storage().data_ptr())
        return None if found is None else found[0]

    def give(self, t: Tensor, gpu: "WatchedGpu | None") -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr():
            self._owners.setdefault(storage.data_ptr(), (gpu, storage))
        return t

    def cross(self, t: Tensor, to: "WatchedGpu | None") -> None:
        """Note a copy of a tensor, if it leads to another GPU; CUDA orders it behind its source."""
        owner = self.owner(t)
        if owner is not None and to is not None and owner is not to:
            self.crossings.append(tuple(t.shape))
            owner.synchronize()

    def check(self, *values: object) -> None:
        """Fail if tensors of both GPUs are among these, or one of the GPU that is not active."""
        owners = {self.owner(t) for t in tree_leaves(values) if isinstance(t, Tensor)} - {None}
        wrong = owners - set(self.active[-1:])
        assert not wrong, f"tensors of GPU {[gpu.number for gpu in wrong if gpu]} elsewhere"


class _Watch(TorchDispatchMode):
    """Checks every operation of torch, and notes whose its result is."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket is torch.ops.aten.copy_:
            self._ledger.cross(args[1], self._ledger.owner(args[0]))
        else:
            self._ledger.check(args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                self._ledger.give(t, self._ledger.active[-1])
        return result


class WatchedGpu(InterpretedDevice):
    """Interpreted GPU that takes its own tensors only."""

    def __init__(
        self,
        ledger: Ledger,
        number: int,
        is_on_cpu: Callable[[str], bool] = lambda name: False,
        is_right: IsRight = lambda on_gpu, w, name: True,
        main: GraphStream | None = None,
    ) -> None:
        super().__init__(is_on_cpu, is_right, main)
        self.ledger, self.number = ledger, number
        ledger.gpus.append(self)
        for name in ("linear", "dense_ffn", "rms_norm", "rotate_", "route", "store_kv", "attend"):
            setattr(self, name, self._checked(getattr(self, name)))

    @contextmanager
    def active(self) -> Iterator[None]:  # type: ignore[override]
        stack = self.ledger.active
        stack.append(self)
        try:
            if len(stack) > 1:
                yield
            else:
                with _Watch(self.ledger):
                    yield
        finally:
            stack.pop()

    def upload(self, t: Tensor) -> Tensor:
        if self.ledger.owner(t) is self:
            return t
        self.ledger.cross(t, self)
        return self.ledger.give(_copied(t), self)

    def to_host(self, t: Tensor) -> Tensor:
        self.ledger.check(t)
        self.synchronize()
        return _copied(t)

    def matrix(self, w: QuantMatrix, name: str) -> Any:
        with self.active():
            made = super().matrix(w, name)
        if not isinstance(made, QuantMatrix):
            self.ledger.give(made.data, self)
        return made

    def empty_bytes(self, *shape: int) -> Tensor:
        return self.ledger.give(super().empty_bytes(*shape), self)

    def tables(self, spans: Any) -> Any:
        with self.active():
            return super().tables(spans)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        def alone() -> None:
            with self.active():
                function()

        return super().capture(alone)

    def _checked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            assert self.ledger.active[-1] is self, f"GPU {self.number} is not active"
            tensors = [getattr(a, "data", a) for a in (*args, *kwargs.values())]
            self.ledger.check(*(t for t in tensors if isinstance(t, Tensor)))
            return method(*args, **kwargs)

        return call


def _copied(t: Tensor) -> Tensor:
    """Copy without the watch, to memory of no GPU."""
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        return t.clone()


def two_devices() -> tuple[CudaDevice, CudaDevice]:
    """Two GPUs: of this machine, the same one twice if it has no more, or watched ones."""
    if torch.cuda.is_available():
        last = torch.cuda.device_count() - 1
        return tuple(CudaDevice(torch.device("cuda", min(i, last))) for i in (0, 1))  # type: ignore[return-value]
    ledger = Ledger()
    return WatchedGpu(ledger, 0), WatchedGpu(ledger, 1)


def use_two_gpus(monkeypatch: pytest.MonkeyPatch, free_bytes: int = 20 << 30) -> Ledger:
    """Let `hybridmoe.load` find two GPUs; the ledger stays empty with real ones."""
    ledger = Ledger()
    is_real = torch.cuda.is_available()
    last = torch.cuda.device_count() - 1 if is_real else 1

    def choose(wanted: str) -> Gpus:
        if wanted == "cpu":
            return NO_GPU
        names = ("RTX 4090", "RTX 3060")
        return tuple(
            CudaGpu(min(i, last), names[i], (9, 0), free_bytes, free_bytes)
            for i in gpu_numbers(wanted) or (0,)
        )

    class WatchedRuntime(InterpretedRuntime):
        def __init__(self, gpu: CudaGpu) -> None:
            super().__init__(gpu)
            self._number = gpu.number

        def device(self, is_on_cpu: Callable[[str], bool], is_right: IsRight) -> CudaDevice:
            return WatchedGpu(ledger, self._number, is_on_cpu, is_right, self._main)

    monkeypatch.setattr(loading, "choose_gpus", choose)
    if not is_real:
        monkeypatch.setattr(gpu_placement, "GpuRuntime", WatchedRuntime)
    return ledger

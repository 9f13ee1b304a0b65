"""The GPU that is used, and the reason where none is."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.hardware import gpu as gpu_module
from hybridmoe.hardware.gpu import CudaGpu, NoGpu, choose_gpus, driver_version, find_gpu

GB = 10**9


BUILT = ["sm_80", "sm_86", "sm_90", "sm_120", "compute_120"]


def fake_torch(
    *gpus: tuple[str, tuple[int, int], int], failure: str = "", warning: str = ""
) -> Any:
    """A torch that has these GPUs: name, capability, free bytes; below 0, one out of order."""

    def is_available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=1)
        return bool(gpus)

    def init() -> None:
        if failure:
            raise RuntimeError(failure)

    def mem_get_info(number: int) -> tuple[int, int]:
        free = gpus[number][2]
        if free < 0:
            raise RuntimeError("CUDA error: the device\nis busy")
        return free, 24 * GB

    cuda = SimpleNamespace(
        is_available=is_available,
        init=init,
        device_count=lambda: len(gpus),
        mem_get_info=mem_get_info,
        get_device_name=lambda i: gpus[i][0],
        get_device_capability=lambda i: gpus[i][1],
        get_device_properties=lambda i: SimpleNamespace(multi_processor_count=128),
        get_arch_list=lambda: BUILT,
    )
    return SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"), cuda=cuda)


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CudaGpu | NoGpu]:
    """`find_gpu` on a machine with this torch, with or without a driver and Triton."""

    def run(torch: Any, *, driver: bool = True, triton: bool = True) -> CudaGpu | NoGpu:
        monkeypatch.setattr(gpu_module, "torch", torch)
        monkeypatch.setattr(gpu_module, "has_driver", lambda: driver)
        missing = "" if triton else "triton is missing: x"
        monkeypatch.setattr(gpu_module, "missing_for_gpu", lambda: missing)
        return find_gpu()

    return run


def test_the_gpu_with_most_free_memory_is_taken(find: Callable[..., CudaGpu | NoGpu]) -> None:
    torch = fake_torch(
        ("old", (7, 5), -1),
        ("busy", (8, 9), 2 * GB),
        ("RTX 4090", (8, 9), 23 * GB),
        ("broken", (9, 0), -1),
    )
    assert find(torch) == CudaGpu(2, "RTX 4090", (8, 9), 24 * GB, 23 * GB, 128)
    newer = fake_torch(("from an intermediate form", (13, 1), GB))
    assert isinstance(find(newer), CudaGpu)


def test_a_machine_without_a_gpu_says_nothing(find: Callable[..., CudaGpu | NoGpu]) -> None:
    found = find(fake_torch(), driver=False)
    assert isinstance(found, NoGpu) and found.is_silent


@pytest.mark.parametrize(
    ("torch", "triton", "reason"),
    [
        (
            SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None)),
            True,
            r"torch 2.13.0\+cpu is built without CUDA",
        ),
        (fake_torch(failure="The NVIDIA driver\n is too old"), True, "The NVIDIA driver is too"),
        (fake_torch(warning="The driver\n is too old (found 11040)"), True, "driver is too old"),
        (fake_torch(), True, "no usable GPU"),
        (fake_torch(("GTX 1080", (6, 1), GB)), True, "GTX 1080 has compute capability 6.1; 8.0 is"),
        (fake_torch(("T4", (7, 5), GB)), True, "T4 has compute capability 7.5; 8.0 is needed"),
        (fake_torch(("Thor", (11, 0), GB)), True, "torch 2.13.0 has no code for Thor"),
        (fake_torch(("B", (9, 0), -1)), True, "GPU 0: CUDA error: the device is busy"),
        (fake_torch(("A", (8, 0), GB)), False, "triton is missing: x"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    find: Callable[..., CudaGpu | NoGpu], torch: Any, triton: bool, reason: str
) -> None:
    found = find(torch, triton=triton)
    assert isinstance(found, NoGpu) and not found.is_silent
    assert "\n" not in found.reason
    with pytest.raises(ConfigError, match=f"device=cuda: .*{reason}"):
        choose_gpus("cuda")
    assert choose_gpus("auto") == found


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("cuda:2", "device=cuda:2: there is no such GPU, only cuda:0, cuda:1"),
        ("cuda:1,cuda:7", "device=cuda:7: there is no such GPU, only cuda:0, cuda:1"),
        ("cuda:1,cuda:0", "device=cuda:0: RTX 2080 has compute capability 7.5; 8.0 is needed"),
    ],
)
def test_a_named_gpu_that_is_not_there_is_one_line(
    find: Callable[..., CudaGpu | NoGpu], wanted: str, reason: str
) -> None:
    find(fake_torch(("RTX 2080", (7, 5), 8 * GB), ("RTX 4090", (8, 9), 23 * GB)))
    with pytest.raises(ConfigError) as caught:
        choose_gpus(wanted)
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)


def test_named_gpus_are_taken_in_the_order_given(find: Callable[..., CudaGpu | NoGpu]) -> None:
    find(fake_torch(("A", (8, 9), 23 * GB), ("B", (9, 0), 70 * GB), ("C", (8, 0), 9 * GB)))
    chosen = choose_gpus("cuda:2,cuda:0")
    assert isinstance(chosen, tuple) and [gpu.name for gpu in chosen] == ["C", "A"]
    assert [gpu.number for gpu in chosen] == [2, 0]
    (alone,) = choose_gpus("cuda:0")
    assert isinstance(alone, CudaGpu) and alone.name == "A"  # not the one with most memory


def test_named_gpus_need_a_driver_and_triton(find: Callable[..., CudaGpu | NoGpu]) -> None:
    torch = fake_torch(("A", (8, 9), 23 * GB))
    for options, reason in (({"driver": False}, "no NVIDIA GPU"), ({"triton": False}, "triton is")):
        find(torch, **options)
        with pytest.raises(ConfigError, match=f"device=cuda:0: {reason}"):
            choose_gpus("cuda:0")


def test_device_cpu_does_not_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "find_gpu", None)
    found = choose_gpus("cpu")
    assert isinstance(found, NoGpu) and found.is_silent


def test_this_machine_is_asked_without_harm() -> None:
    assert isinstance(find_gpu(), CudaGpu | NoGpu)


def test_the_driver_says_its_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path) is None
    path = tmp_path / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True)
    for text, version in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n", "550.54.14"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
            "GCC version:  gcc version 13.3.0\n",
            "580.95.05",
        ),
        ("nothing of the kind", None),
    ):
        path.write_text(text)
        assert driver_version(tmp_path) == version

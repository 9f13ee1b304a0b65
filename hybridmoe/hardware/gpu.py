"""CUDA GPUs of this machine: the usable one with most free memory, or those that are named.

CUDA is initialised by the first call, and no error of torch passes through.
"""

import re
import warnings
from collections.abc import Sequence
from ctypes import CDLL
from pathlib import Path
from typing import NamedTuple

import torch

from hybridmoe.config import DEVICES
from hybridmoe.errors import ConfigError
from hybridmoe.option import gpu_numbers
from hybridmoe.packages import missing_packages
from hybridmoe.units import format_bytes

__all__ = [
    "CudaGpu",
    "Gpus",
    "NoGpu",
    "choose_gpus",
    "driver_version",
    "find_gpu",
    "find_gpus",
]

MIN_CAPABILITY = (8, 0)  # tensor cores for bfloat16: Ampere


class CudaGpu(NamedTuple):
    """A GPU that can be used."""

    number: int  # as torch counts
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    num_multiprocessors: int = 0  # 0: not asked

    @property
    def facts(self) -> str:
        """Line for people."""
        return (
            f"{self.name}, {format_bytes(self.free_bytes)} of {format_bytes(self.total_bytes)}"
            f" free, {self.num_multiprocessors} multiprocessors,"
            f" compute capability {_dotted(self.capability)}"
        )


class NoGpu(NamedTuple):
    """No GPU is used; the reason is one line."""

    reason: str
    is_silent: bool = False  # not worth a note: there is none, or the CPU was asked for


Gpus = tuple[CudaGpu, ...] | NoGpu  # in the order of their layers


def has_driver() -> bool:
    """Return True if this machine has a device or a driver library of NVIDIA."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        return True
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def missing_for_gpu() -> str:
    """Name what is to be installed before a GPU can be used; "" = nothing."""
    return missing_packages("triton", "numba")  # kernels; policies of the expert slots


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of the NVIDIA driver in the kernel; None without one, or if it is unknown."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return match[1] if match else None


def find_gpu() -> CudaGpu | NoGpu:
    """Find the usable GPU with most free memory."""
    found = find_gpus()
    if isinstance(found, NoGpu):
        return found
    usable = [gpu for gpu in found if isinstance(gpu, CudaGpu)]
    if not usable:
        return next((gpu for gpu in found if isinstance(gpu, NoGpu)), NoGpu("no GPU"))
    if reason := missing_for_gpu():
        return NoGpu(reason)
    return max(usable, key=lambda gpu: gpu.free_bytes)


def choose_gpus(wanted: str) -> Gpus:
    """Choose the GPUs of a device: `auto`, `cpu`, `cuda`, or by number, such as `cuda:0,cuda:1`.

    Errors: ConfigError for `cuda` without a usable GPU: on the CPU all would take ten times as
    long; and for a GPU that is not there, or cannot be used.
    """
    if wanted == "cpu":
        return NoGpu("the CPU was asked for", is_silent=True)
    if wanted in DEVICES:
        found = find_gpu()
        if isinstance(found, CudaGpu):
            return (found,)
        if wanted == "cuda":
            raise ConfigError(f"device=cuda: {found.reason}")
        return found
    all_gpus = find_gpus()
    if isinstance(all_gpus, NoGpu):
        raise ConfigError(f"device={wanted}: {all_gpus.reason}")
    chosen = tuple(_named(number, all_gpus) for number in gpu_numbers(wanted))
    if reason := missing_for_gpu():
        raise ConfigError(f"device={wanted}: {reason}")
    return chosen


def _named(number: int, found: Sequence[CudaGpu | NoGpu]) -> CudaGpu:
    if number >= len(found):
        there = ", ".join(f"cuda:{i}" for i in range(len(found)))
        raise ConfigError(f"device=cuda:{number}: there is no such GPU, only {there}")
    gpu = found[number]
    if isinstance(gpu, NoGpu):
        raise ConfigError(f"device=cuda:{number}: {gpu.reason}")
    return gpu


def find_gpus() -> list[CudaGpu | NoGpu] | NoGpu:
    """Inspect every GPU that torch counts; or the reason why it counts none."""
    if not has_driver():
        return NoGpu("no NVIDIA GPU was found", is_silent=True)
    if torch.version.cuda is None:
        return NoGpu(
            f"torch {torch.__version__} is built without CUDA: install it from"
            " pytorch.org for your CUDA version"
        )
    with warnings.catch_warnings(record=True) as said:  # torch prints paragraphs
        warnings.simplefilter("always")
        try:
            if not torch.cuda.is_available():
                if said:
                    return NoGpu(_line(said[0].message))
                torch.cuda.init()  # type: ignore[no-untyped-call]  # raises with the reason
                return NoGpu("torch finds no usable GPU")
            return [_inspect(i) for i in range(torch.cuda.device_count())]
        except Exception as error:  # of the driver: too old, out of reach, out of order
            return NoGpu(_line(error))


def _inspect(number: int) -> CudaGpu | NoGpu:
    """Read the properties of one GPU, or the reason why it cannot be used."""
    try:
        name = str(torch.cuda.get_device_name(number))
        capability = torch.cuda.get_device_capability(number)
        if capability < MIN_CAPABILITY:
            needed = f"{_dotted(MIN_CAPABILITY)} is needed (Ampere or later)"
            return NoGpu(f"{name} has compute capability {_dotted(capability)}; {needed}")
        if not _is_built_for(capability, torch.cuda.get_arch_list()):
            return NoGpu(
                f"torch {torch.__version__} has no code for {name} (compute capability"
                f" {_dotted(capability)}): install a newer one, from pytorch.org"
            )
        # Last, since it takes some of the GPU's memory.
        free, total = torch.cuda.mem_get_info(number)
        count = torch.cuda.get_device_properties(number).multi_processor_count
    except Exception as error:
        return NoGpu(f"GPU {number}: {_line(error)}")
    return CudaGpu(number, name, capability, int(total), int(free), int(count))


def _is_built_for(capability: tuple[int, ...], built: list[str]) -> bool:
    """Return True if `built` (sm_86, compute_90, ...) has code that runs at this capability."""
    for name in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if match is None:
            continue
        target = (int(match[2]), int(match[3]))
        if target <= capability and (match[1] == "compute" or target[0] == capability[0]):
            return True
    return not built  # an unknown build


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

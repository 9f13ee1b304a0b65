"""The CUDA card of this machine, if it has one that can be used; else why not.

Nothing is initialised before it is asked for, and nothing that torch raises comes through.
"""

import importlib.util
import re
import warnings
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridmoe.config import DEVICES
from hybridmoe.errors import ConfigError

__all__ = [
    "CudaGpu",
    "NoGpu",
    "choose_gpu",
    "driver_version",
    "find_gpu",
]

MIN_CAPABILITY = (8, 0)  # tensor cores for bfloat16: Ampere


class CudaGpu(NamedTuple):
    """A card that can be used."""

    number: int  # as torch counts
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    num_multiprocessors: int = 0  # 0: not asked


class NoGpu(NamedTuple):
    """The CPU does all, and one line that says why."""

    reason: str
    is_silent: bool = False  # there is nothing to tell: no card, or nobody wants one


def has_driver() -> bool:
    """Whether there are traces of an NVIDIA card: a device or the driver's library."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        return True
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def driver_version(root: Path = Path("/")) -> str | None:
    """Of the NVIDIA driver in the kernel; None where there is none, or it does not say."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return match[1] if match else None


def find_gpu(
    torch: Any = torch,
    has_driver: Callable[[], bool] = has_driver,
    has_triton: Callable[[], bool] = has_triton,
) -> CudaGpu | NoGpu:
    """The card with most memory free, of those that can be used. The parameters are for tests."""
    if not has_driver():
        return NoGpu("no NVIDIA card was found", is_silent=True)
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
                torch.cuda.init()  # says why
                return NoGpu("torch finds no usable card")
            asked = [_ask(torch, i) for i in range(torch.cuda.device_count())]
        except Exception as error:  # of the driver: too old, out of reach, out of order
            return NoGpu(_line(error))
    usable = [card for card in asked if isinstance(card, CudaGpu)]
    if not usable:
        return next((card for card in asked if isinstance(card, NoGpu)), NoGpu("no card"))
    if not has_triton():
        return NoGpu("Triton is missing: pip install hybridmoe[cuda]")
    return max(usable, key=lambda card: card.free_bytes)


def choose_gpu(wanted: str, find: Callable[[], CudaGpu | NoGpu] = find_gpu) -> CudaGpu | NoGpu:
    """The card for `auto`, `cpu` or `cuda`.

    Errors: ConfigError for another word, and for `cuda` where there is none: a wish that is not
    granted should not become an answer that takes ten times as long.
    """
    if wanted not in DEVICES:
        raise ConfigError(f"device={wanted!r:.40}: expected {', '.join(DEVICES)}")
    if wanted == "cpu":
        return NoGpu("the CPU was asked for", is_silent=True)
    found = find()
    if wanted == "cuda" and isinstance(found, NoGpu):
        raise ConfigError(f"device=cuda: {found.reason}")
    return found


def _ask(torch: Any, number: int) -> CudaGpu | NoGpu:
    """One of several cards, or why it cannot be used; others may be better."""
    try:
        name = str(torch.cuda.get_device_name(number))
        capability = tuple(torch.cuda.get_device_capability(number))
        if capability < MIN_CAPABILITY:
            needed = f"{_dotted(MIN_CAPABILITY)} is needed (Ampere or later)"
            return NoGpu(f"{name} has compute capability {_dotted(capability)}; {needed}")
        if not _is_built_for(capability, torch.cuda.get_arch_list()):
            return NoGpu(
                f"torch {torch.__version__} has no code for {name} (compute capability"
                f" {_dotted(capability)}): install a newer one, from pytorch.org"
            )
        # Last, since it takes some of the card's memory.
        free, total = torch.cuda.mem_get_info(number)
        count = torch.cuda.get_device_properties(number).multi_processor_count
    except Exception as error:
        return NoGpu(f"card {number}: {_line(error)}")
    return CudaGpu(number, name, capability, int(total), int(free), int(count))


def _is_built_for(capability: tuple[int, ...], built: list[str]) -> bool:
    """Whether machine code or an intermediate form that the card takes is among sm_86, ..."""
    for name in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if match is None:
            continue
        there = (int(match[2]), int(match[3]))
        if there <= capability and (match[1] == "compute" or there[0] == capability[0]):
            return True
    return not built  # nothing is known


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""The CUDA card of this machine, if it has one that can be used; else why not.

Nothing is initialised before it is asked for, and nothing that torch raises comes through.
"""

import importlib.util
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridmoe.config import DEVICES
from hybridmoe.errors import ConfigError

__all__ = ["CudaCard", "NoCard", "choose_card", "find_card"]

MIN_CAPABILITY = (8, 0)  # tensor cores for bfloat16: Ampere


class CudaCard(NamedTuple):
    """The first usable card."""

    number: int  # as torch counts
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


class NoCard(NamedTuple):
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


def find_card(
    torch: Any = torch,
    has_driver: Callable[[], bool] = has_driver,
    has_triton: Callable[[], bool] = has_triton,
) -> CudaCard | NoCard:
    """The card with most memory free. The parameters are for tests."""
    if not has_driver():
        return NoCard("no NVIDIA card was found", is_silent=True)
    if torch.version.cuda is None:
        return NoCard(
            f"torch {torch.__version__} is built without CUDA: install it from"
            " pytorch.org for your CUDA version"
        )
    try:
        if not torch.cuda.is_available():
            torch.cuda.init()  # says why
            return NoCard("torch finds no usable card")
        cards = [_card(torch, i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # of the driver: too old, out of reach, out of order
        return NoCard(" ".join(str(error).split())[:300] or type(error).__name__)
    usable = [card for card in cards if card.capability >= MIN_CAPABILITY]
    if not usable:
        card = cards[0]
        wanted, found = (".".join(map(str, of)) for of in (MIN_CAPABILITY, card.capability))
        return NoCard(f"{card.name} has compute capability {found}; {wanted} is needed (Ampere)")
    if not has_triton():
        return NoCard("Triton is missing: pip install hybridmoe[cuda]")
    return max(usable, key=lambda card: card.free_bytes)


def choose_card(
    wanted: str, find: Callable[[], CudaCard | NoCard] = find_card
) -> CudaCard | NoCard:
    """The card for `auto`, `cpu` or `cuda`.

    Errors: ConfigError for another word, and for `cuda` where there is none: a wish that is not
    granted should not become an answer that takes ten times as long.
    """
    if wanted not in DEVICES:
        raise ConfigError(f"device={wanted!r:.40}: expected {', '.join(DEVICES)}")
    if wanted == "cpu":
        return NoCard("the CPU was asked for", is_silent=True)
    found = find()
    if wanted == "cuda" and isinstance(found, NoCard):
        raise ConfigError(f"device=cuda: {found.reason}")
    return found


def _card(torch: Any, number: int) -> CudaCard:
    free, total = torch.cuda.mem_get_info(number)
    return CudaCard(
        number,
        str(torch.cuda.get_device_name(number)),
        tuple(torch.cuda.get_device_capability(number)),
        int(total),
        int(free),
    )

"""Which card is used, and what is said where none is."""

from types import SimpleNamespace
from typing import Any

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.kernels.card import CudaCard, NoCard, choose_card, find_card

GB = 10**9


def fake_torch(*cards: tuple[str, tuple[int, int], int], failure: str = "", **version: Any) -> Any:
    """A torch that has these cards: name, capability, free bytes."""

    def init() -> None:
        if failure:
            raise RuntimeError(failure)

    cuda = SimpleNamespace(
        is_available=lambda: bool(cards),
        init=init,
        device_count=lambda: len(cards),
        mem_get_info=lambda i: (cards[i][2], 24 * GB),
        get_device_name=lambda i: cards[i][0],
        get_device_capability=lambda i: cards[i][1],
    )
    return SimpleNamespace(
        __version__="2.13.0", version=SimpleNamespace(cuda="13.0", **version), cuda=cuda
    )


def find(torch: Any, *, driver: bool = True, triton: bool = True) -> CudaCard | NoCard:
    return find_card(torch, lambda: driver, lambda: triton)


def test_the_card_with_most_free_memory_is_taken() -> None:
    torch = fake_torch(
        ("old", (7, 5), 30 * GB), ("busy", (8, 9), 2 * GB), ("RTX 4090", (8, 9), 23 * GB)
    )
    assert find(torch) == CudaCard(2, "RTX 4090", (8, 9), 24 * GB, 23 * GB)


def test_a_machine_without_a_card_says_nothing() -> None:
    found = find(fake_torch(), driver=False)
    assert isinstance(found, NoCard) and found.is_silent


@pytest.mark.parametrize(
    ("torch", "triton", "reason"),
    [
        (
            SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None)),
            True,
            r"torch 2.13.0\+cpu is built without CUDA",
        ),
        (fake_torch(failure="The NVIDIA driver\n is too old"), True, "The NVIDIA driver is too"),
        (fake_torch(), True, "no usable card"),
        (fake_torch(("GTX 1080", (6, 1), GB)), True, "GTX 1080 has compute capability 6.1; 8.0 is"),
        (fake_torch(("A", (8, 0), GB)), False, r"pip install hybridmoe\[cuda\]"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(torch: Any, triton: bool, reason: str) -> None:
    found = find(torch, triton=triton)
    assert isinstance(found, NoCard) and not found.is_silent
    assert "\n" not in found.reason
    with pytest.raises(ConfigError, match=f"device=cuda: .*{reason}"):
        choose_card("cuda", lambda: found)
    assert choose_card("auto", lambda: found) == found


def test_a_wish_for_the_cpu_asks_no_card() -> None:
    def find() -> CudaCard | NoCard:
        raise AssertionError

    found = choose_card("cpu", find)
    assert isinstance(found, NoCard) and found.is_silent
    with pytest.raises(ConfigError, match="device='gpu': expected auto, cpu, cuda"):
        choose_card("gpu", find)


def test_this_machine_is_asked_without_harm() -> None:
    assert isinstance(find_card(), CudaCard | NoCard)

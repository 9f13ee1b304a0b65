"""What is said of a card's failures, with errors such as torch raises; none of it needs a card."""

import re

import pytest
import torch

from hybridmoe.errors import ConfigError, DeviceError
from hybridmoe.kernels.guard import CardBudget, CardGuard, loading_onto_card

GIB = 1 << 30
OOM = (
    "CUDA out of memory. Tried to allocate {} MiB. GPU 0 has a total capacity of 23.64 GiB of which"
    " 130.00 MiB is free. Including non-PyTorch memory, this process has 23.5 GiB memory in use. If"
    " reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF.\n"
)
ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    " asynchronously reported at some other API call.\nCompile with `TORCH_USE_CUDA_DSA`.\n"
)
TOKEN_KV = 61 * 576 * 2
BUDGET = CardBudget(22 * GIB, 4 * GIB, 32768, TOKEN_KV)


def said(error: Exception, budget: CardBudget | None = BUDGET, *, answers: bool = True) -> str:
    guard = CardGuard(budget, lambda: answers)
    with pytest.raises(DeviceError) as caught, guard.watch("a step of 512 tokens"):
        raise error
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__
    return str(caught.value)


def test_a_step_without_memory_says_what_to_lower_and_by_how_much() -> None:
    text = said(torch.OutOfMemoryError(OOM.format("642.00")))
    assert "for a step of 512 tokens (0.63 GiB asked for, 0.13 free)" in text
    lower = re.search(r"lower --vram to ([0-9.]+)GiB, which leaves fewer slots", text)
    assert lower is not None
    assert 512 / 1024 <= 22 - float(lower[1]) < 0.6  # what was missing, and a little


def test_latents_are_named_where_slots_are_too_few() -> None:
    budget = BUDGET._replace(slots_bytes=0)
    text = said(torch.OutOfMemoryError(OOM.format("642.00")), budget)
    tokens = re.search(r"and what latents hold \(--ctx\) to (\d+) tokens", text)
    assert tokens is not None and int(tokens[1]) % 64 == 0
    freed = (32768 - int(tokens[1])) * TOKEN_KV
    assert 512 << 20 <= freed < 600 << 20
    assert "22.00GiB" not in text  # of lower latents alone, slots would take what is freed
    text = said(torch.OutOfMemoryError(OOM.format("642.00")), budget._replace(kv_tokens=64))
    assert "leave weights to the CPU with --place" in text


@pytest.mark.parametrize(
    "text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"]
)
def test_memory_that_the_driver_or_a_library_lacks_is_no_loss(text: str) -> None:
    guard = CardGuard(None, lambda: False)
    with (
        pytest.raises(DeviceError, match=r"\(how much .* is not known\): lower --vram by 0.07 GiB"),
        guard.watch("a step"),
    ):
        raise RuntimeError(text)
    guard.check()


def test_a_lost_card_is_lost_for_all_that_follows() -> None:
    guard = CardGuard(None, lambda: False)
    lost = "^the card failed: CUDA error: an illegal memory access was encountered; restart to use"
    with pytest.raises(DeviceError, match=lost), guard.watch("a step"):
        raise RuntimeError(ILLEGAL)
    with pytest.raises(DeviceError, match=lost):
        guard.check()
    with pytest.raises(DeviceError, match=lost), guard.watch("a step"):
        raise AssertionError("a lost card is not used")


def test_a_card_that_still_answers_fails_one_step() -> None:
    guard = CardGuard(None, lambda: True)
    with pytest.raises(DeviceError, match="failed in a step: Triton Error"), guard.watch("a step"):
        raise RuntimeError("Triton Error [CUDA]: invalid argument")
    with guard.watch("the next step"):
        pass


def test_without_a_card_nothing_answers() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    guard = CardGuard()
    with pytest.raises(DeviceError), guard.watch("a step"):
        raise RuntimeError(ILLEGAL)
    with pytest.raises(DeviceError, match="restart"):
        guard.check()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConfigError("x"), MemoryError("none")])
def test_other_errors_pass(error: Exception) -> None:
    guard = CardGuard()
    with pytest.raises(type(error), match=str(error)), guard.watch("a step"):
        raise error
    with pytest.raises(type(error), match=str(error)), loading_onto_card("weights"):
        raise error
    guard.check()


def test_loading_says_what_had_no_room() -> None:
    with (
        pytest.raises(ConfigError, match=r"left for expert slots \(0.63 .*--vram to 21.4"),
        loading_onto_card("expert slots", BUDGET),
    ):
        raise torch.OutOfMemoryError(OOM.format("642.00"))
    with (
        pytest.raises(DeviceError, match=r"^the card failed: .* encountered$"),
        loading_onto_card("expert slots"),
    ):
        raise RuntimeError(ILLEGAL)

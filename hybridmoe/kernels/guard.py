"""What a card's failures become: one line that says what to do.

A step that asks for more memory than there is fails alone, and so does one after whose error the
card still answers. After others nothing that the card holds can be trusted, and torch answers every
call with the same error: the card is lost to this process.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from hybridmoe.errors import ConfigError, DeviceError

__all__ = ["CardBudget", "CardGuard", "loading_onto_card"]

GIB = 1 << 30
_MARGIN_BYTES = 64 << 20  # beyond what was missing: the next step may ask for a little more
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB}
_SIZE = r"([0-9.]+) (bytes|KiB|MiB|GiB)"
_PAGE_TOKENS = 64  # latents come in pages


class CardBudget(NamedTuple):
    """How a card's memory was divided: what can be lowered."""

    vram_bytes: int
    slots_bytes: int  # experts' slots, all together
    kv_tokens: int
    kv_token_bytes: int


class CardGuard:
    """Remembers whether the card is lost. One thread watches; `check` is for any."""

    def __init__(
        self, budget: CardBudget | None = None, answers: Callable[[], bool] | None = None
    ) -> None:
        """answers: whether the card still does what it is told; None = torch is asked."""
        self._budget = budget
        self._answers = _answers if answers is None else answers
        self._loss: str | None = None

    def check(self) -> None:
        """Errors: DeviceError where the card is lost."""
        if self._loss is not None:
            raise DeviceError(self._loss)

    @contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """Around what uses the card, such as "a step". Errors: DeviceError instead of torch's."""
        self.check()
        try:
            yield
        except RuntimeError as error:  # torch's own are
            if _is_out_of_memory(error):
                text = f"the card has no memory left for {what} ({_told(error)}): "
                raise DeviceError(text + _advice(error, self._budget)) from None
            if not _is_cuda(error):
                raise
            if self._answers():
                raise DeviceError(f"the card failed in {what}: {_line(error)}") from None
            self._loss = f"the card failed: {_line(error)}; restart to use it again"
            raise DeviceError(self._loss) from None


@contextmanager
def loading_onto_card(what: str, budget: CardBudget | None = None) -> Iterator[None]:
    """Around filling a card. Errors: ConfigError where it has no room, DeviceError if it fails."""
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise ConfigError(
                f"the card has no memory left for {what} ({_told(error)}), others may have taken"
                f" it meanwhile: {_advice(error, budget)}"
            ) from None
        if not _is_cuda(error):
            raise
        raise DeviceError(f"the card failed: {_line(error)}") from None


def _answers() -> bool:
    """Errors that last come back with every call."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of torch's allocator, of the driver or of a library on the card."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        _is_cuda(error) and ("out of memory" in text or "ALLOC_FAILED" in text)
    )


def _is_cuda(error: RuntimeError) -> bool:
    return "CUDA" in str(error)


def _line(error: RuntimeError) -> str:
    """The first line; torch adds a paragraph of advice."""
    return str(error).strip().split("\n")[0][:200].rstrip(".")


def _asked_and_free(error: RuntimeError) -> tuple[int, int] | None:
    """Bytes, of torch's text."""
    text = str(error)
    asked = re.search(f"Tried to allocate {_SIZE}", text)
    free = re.search(f"of which {_SIZE} is free", text)
    if asked is None or free is None:
        return None
    return int(float(asked[1]) * _UNITS[asked[2]]), int(float(free[1]) * _UNITS[free[2]])


def _told(error: RuntimeError) -> str:
    found = _asked_and_free(error)
    if found is None:
        return "how much was asked for is not known"
    return f"{found[0] / GIB:.2f} GiB asked for, {found[1] / GIB:.2f} free"


def _advice(error: RuntimeError, budget: CardBudget | None) -> str:
    """What to lower, and by how much, so that the same would find room.

    Latents alone would not help while there are slots, which take what latents leave.
    """
    asked, free = _asked_and_free(error) or (0, 0)
    missing = max(0, asked - free) + _MARGIN_BYTES
    if budget is None:
        return f"lower --vram by {missing / GIB + 0.005:.2f} GiB, or --ctx"
    vram = max(0, (budget.vram_bytes - missing) * 100 // GIB) / 100
    text = f"lower --vram to {vram:.2f}GiB"
    rest = missing - budget.slots_bytes
    if rest <= 0:
        return f"{text}, which leaves fewer slots for experts"
    tokens = (budget.kv_tokens - rest // max(1, budget.kv_token_bytes)) // _PAGE_TOKENS - 1
    if tokens > 0:
        return f"{text} and what latents hold (--ctx) to {tokens * _PAGE_TOKENS} tokens"
    return f"{text} and leave weights to the CPU with --place REGEX=cpu"

"""What a card's failures become: one line that says what to do.

A step that asks for more memory than there is fails alone. After any other error of CUDA nothing
that the card holds can be trusted, and torch answers every call with the same error: the card is
lost to this process.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybridmoe.errors import ConfigError, DeviceError

__all__ = ["CudaErrorGuard", "loading_onto_gpu"]

# Also what libraries say, and the driver where it is asked for page-locked memory.
_NO_ROOM = re.compile(r"\bout of memory\b|_ALLOC_FAILED\b")
_OF_CARD = re.compile(
    r"\bCUDA (driver )?error\b|\bCUDA_ERROR_|\bCU(BLAS|DNN)_STATUS|Error \[CUDA\]"
)
_AMOUNT = r"([0-9.]+) (bytes|KiB|MiB|GiB)"
_ASKED = re.compile(rf"Tried to allocate {_AMOUNT}")
_FREE = re.compile(rf"of which {_AMOUNT} is free")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
GIB = 1 << 30
_MARGIN_BYTES = 64 << 20  # of what is advised: torch takes memory in larger pieces than it needs


class CudaErrorGuard:
    """Remembers whether the card is lost. One thread watches; the rest is for any."""

    def __init__(self, vram_bytes: int | None = None) -> None:
        """vram_bytes: what was planned for, so that a message can say how much less it is to be."""
        self._vram_bytes = vram_bytes
        self.loss: str | None = None  # one line

    def check(self) -> None:
        """Errors: DeviceError where the card is lost."""
        if self.loss is not None:
            raise DeviceError(self.loss)

    @contextmanager
    def watch(self, num_tokens: int | None = None) -> Iterator[None]:
        """Around work on the card, such as a step of so many tokens.

        Errors: DeviceError instead of torch's, or at once where the card is lost.
        """
        self.check()
        try:
            yield
        except RuntimeError as error:  # torch.AcceleratorError is one
            if _is_no_room(error):
                step = "" if num_tokens is None else f" for a step of {num_tokens} tokens"
                raise DeviceError(
                    f"the card has no memory left{step}{_asked(error)}:"
                    f" {_remedy(error, self._vram_bytes)}, so that experts leave more of it"
                ) from None
            if not _is_of_card(error):
                raise
            self.loss = f"the card failed: {_line(error)}; restart to use it again"
            raise DeviceError(self.loss) from None


@contextmanager
def loading_onto_gpu(what: str, vram_bytes: int | None = None) -> Iterator[None]:
    """Around filling a card. Errors: ConfigError where it has no room, DeviceError if it fails."""
    try:
        yield
    except RuntimeError as error:
        if _is_no_room(error):
            raise ConfigError(
                f"the card has no memory left for {what}{_asked(error)}: others may have taken it"
                f" meanwhile; {_remedy(error, vram_bytes)}"
            ) from None
        if not _is_of_card(error):
            raise
        raise DeviceError(f"the card failed: {_line(error)}") from None


def _is_no_room(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(_NO_ROOM.search(str(error)))


def _is_of_card(error: RuntimeError) -> bool:
    return isinstance(error, torch.AcceleratorError) or bool(_OF_CARD.search(str(error)))


def _line(error: RuntimeError) -> str:
    """The first sentence; torch adds a paragraph of advice."""
    return str(error).strip().split("\n")[0][:200].rstrip(".")


def _asked(error: RuntimeError) -> str:
    """Of torch's text: how much was asked for, and how much is free."""
    asked, free = _ASKED.search(str(error)), _FREE.search(str(error))
    if asked is None:
        return ""
    there = f", {free[1]} {free[2]} are free" if free else ""
    return f" ({asked[1]} {asked[2]} are needed{there})"


def _remedy(error: RuntimeError, vram_bytes: int | None) -> str:
    """How much lower the budget is to be: what was missing, and a little."""
    asked, free = (_bytes(pattern, str(error)) for pattern in (_ASKED, _FREE))
    if not asked:
        return "lower --vram"
    # Where enough is free, it is not in one piece.
    missing = (asked - free if asked > free else asked) + _MARGIN_BYTES
    if vram_bytes is None or missing >= vram_bytes:
        return f"lower --vram by {missing / GIB + 0.005:.2f} GiB"
    return f"lower --vram to {int((vram_bytes - missing) / GIB * 100) / 100:.2f}GiB"


def _bytes(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0

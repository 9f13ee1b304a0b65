"""What a card's failures become: one line that says what to do.

A step that asks for more memory than there is fails alone. After any other error of CUDA nothing
that the card holds can be trusted, and torch answers every call with the same error: the card is
lost to this process.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybridmoe.errors import ConfigError, DeviceError

__all__ = ["CardGuard", "loading_onto_card"]


class CardGuard:
    """Remembers whether the card is lost. One thread watches; `check` is for any."""

    def __init__(self) -> None:
        self._loss: str | None = None

    def check(self) -> None:
        """Errors: DeviceError where the card is lost."""
        if self._loss is not None:
            raise DeviceError(self._loss)

    @contextmanager
    def watch(self, num_tokens: int) -> Iterator[None]:
        """Around a step of so many tokens. Errors: DeviceError instead of torch's."""
        self.check()
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the card has no memory left for a step of {num_tokens} tokens ({_asked(error)}):"
                " lower --vram, so that experts leave more of it, or --ctx"
            ) from None
        except RuntimeError as error:  # torch.AcceleratorError is one
            if not _is_cuda(error):
                raise
            self._loss = f"the card failed: {_line(error)}; restart to use it again"
            raise DeviceError(self._loss) from None


@contextmanager
def loading_onto_card(what: str) -> Iterator[None]:
    """Around filling a card. Errors: ConfigError where it has no room, DeviceError if it fails."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the card has no memory left for {what} ({_asked(error)}): others may have taken it"
            " meanwhile; lower --vram or --ctx"
        ) from None
    except RuntimeError as error:
        if not _is_cuda(error):
            raise
        raise DeviceError(f"the card failed: {_line(error)}") from None


def _is_cuda(error: RuntimeError) -> bool:
    return isinstance(error, torch.AcceleratorError) or "CUDA" in str(error)


def _line(error: RuntimeError) -> str:
    """The first sentence; torch adds a paragraph of advice."""
    return str(error).strip().split("\n")[0][:200].rstrip(".")


def _asked(error: RuntimeError) -> str:
    """Of torch's text: how much was asked for, and how much is free."""
    sentences = [s.strip() for s in str(error).replace("\n", " ").split(". ")]
    told = [s for s in sentences if s.startswith("Tried to allocate") or " is free" in s]
    return "; ".join(told)[:200].rstrip(".") or "torch does not say how much was asked for"

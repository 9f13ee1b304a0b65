"""Progress of a load or of a prefill, as callbacks get it."""

from collections.abc import Callable
from typing import Literal, NamedTuple

__all__ = ["Progress", "ProgressCallback"]


class Progress(NamedTuple):
    """Progress of a load or of a prefill."""

    phase: Literal["compile", "load", "prompt", "check", "download"]
    done: int
    total: int
    unit: Literal["bytes", "tokens", "kernels"]


ProgressCallback = Callable[[Progress], None]

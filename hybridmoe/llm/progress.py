"""Progress of a load or of a prefill, as callbacks get it."""

from collections.abc import Callable
from typing import Literal, NamedTuple

__all__ = ["Progress", "ProgressCallback"]


class Progress(NamedTuple):
    """Progress of a load, of a prefill, or of other long work."""

    phase: Literal["compile", "load", "cluster", "prompt", "check", "download", "record", "replay"]
    done: int
    total: int
    unit: Literal["bytes", "tokens", "kernels", "hosts", "responses", "runs"]


ProgressCallback = Callable[[Progress], None]

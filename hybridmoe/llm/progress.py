"""Progress of a load or of a prefill, as callbacks get it."""

from collections.abc import Callable
from typing import Literal, NamedTuple

__all__ = ["Progress", "ProgressCallback", "Report", "reporter"]

Phase = Literal["compile", "load", "cluster", "prompt", "check", "download", "record", "replay"]
Unit = Literal["bytes", "tokens", "kernels", "hosts", "responses", "runs"]
Report = Callable[[int, int], None]  # done, of all


class Progress(NamedTuple):
    """Progress of a load, of a prefill, or of other long work."""

    phase: Phase
    done: int
    total: int
    unit: Unit


ProgressCallback = Callable[[Progress], None]


def reporter(callback: ProgressCallback | None, phase: Phase, unit: Unit) -> Report:
    """Make a function that reports one phase; it does nothing without a callback."""

    def report(done: int, total: int) -> None:
        if callback is not None:
            callback(Progress(phase, done, total, unit))

    return report

"""Wait for events in tests: the only time limit is one that tells a hang from a slow machine."""

import time
from collections.abc import Callable

__all__ = ["HANG_S", "eventually"]

HANG_S = 900.0  # a compiler among ten other programs took 300


def eventually(holds: Callable[[], bool]) -> None:
    """Poll until `holds()`. Errors: AssertionError after `HANG_S`."""
    until = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)

"""Waiting for events in tests: the only limit is the one that tells a hang from a slow machine."""

import time
from collections.abc import Callable

__all__ = ["HANG_S", "eventually"]

HANG_S = 300.0  # nothing that a test waits for takes a hundredth of it on a machine in use


def eventually(holds: Callable[[], bool]) -> None:
    """Poll until `holds()`. Errors: AssertionError after `HANG_S`."""
    until = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)

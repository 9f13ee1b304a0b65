"""Signals that end a command: SIGTERM and SIGHUP unwind it as Ctrl-C does, and all is saved.

Further signals do not interrupt that. Ctrl-C stays a KeyboardInterrupt except where a command
handles it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

__all__ = [
    "ENDING",
    "SignalCounter",
    "Terminated",
    "die_of",
    "handled",
    "terminations",
    "uninterrupted",
]

_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)
ENDING = (signal.SIGINT, *_TERMINATIONS)
_PATIENCE_S = 3.0  # a key held, or tapped three times, is no wish to lose data


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. A SystemExit, since event loops let no other exception pass."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def handled(numbers: tuple[int, ...], on_signal: Callable[[int], None]) -> Iterator[None]:
    """Handle signals by `on_signal`, in the main thread; in others nothing changes.

    An ignored SIGHUP, as below nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        on_signal(number)

    previous = {
        number: signal.signal(number, handle)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def terminations() -> Iterator[list[int]]:
    """Raise Terminated at the first SIGTERM or SIGHUP. Yields the list of those that arrive."""
    arrived: list[int] = []

    def on_signal(number: int) -> None:
        arrived.append(number)
        if len(arrived) == 1:
            raise Terminated(number)

    with handled(_TERMINATIONS, on_signal):
        yield arrived


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals while data is saved; a Ctrl-C repeated for seconds still ends the process."""
    with handled(ENDING, SignalCounter()):
        yield


class SignalCounter:
    """Collects signals; a third Ctrl-C, 3 s after the first signal, ends the process."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self._first_s = 0.0

    def __call__(self, number: int) -> None:
        if not self.arrived:
            self._first_s = time.monotonic()
        self.arrived.append(number)
        is_late = time.monotonic() - self._first_s > _PATIENCE_S
        if number == signal.SIGINT and self.num_interrupts > 2 and is_late:
            os._exit(128 + number)

    @property
    def num_interrupts(self) -> int:
        return self.arrived.count(signal.SIGINT)


def die_of(number: int) -> NoReturn:
    """End the process by the signal itself, which supervisors and shells tell from an exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # a blocked signal

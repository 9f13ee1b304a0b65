"""Signals that end a command: SIGTERM and SIGHUP unwind it as Ctrl-C does, so that what it has to
save is saved; what arrives meanwhile does not interrupt that.

Ctrl-C stays an exception (KeyboardInterrupt) except where a command takes it over.
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

__all__ = ["ENDING", "Insistence", "Terminated", "die_of", "handled", "patient", "terminations"]

_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)
ENDING = (signal.SIGINT, *_TERMINATIONS)
_PATIENCE_S = 3.0  # a key that is held, or tapped three times, is no wish to lose what is saved


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has come. A SystemExit, since event loops let no other exception pass."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def handled(numbers: tuple[int, ...], on_signal: Callable[[int], None]) -> Iterator[None]:
    """Signals call `on_signal` in the main thread; elsewhere nothing changes.

    A SIGHUP that is ignored, as below nohup, stays so.
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
    """SIGTERM and SIGHUP raise Terminated, the first of them only. Yields those that came."""
    come: list[int] = []

    def on_signal(number: int) -> None:
        come.append(number)
        if len(come) == 1:
            raise Terminated(number)

    with handled(_TERMINATIONS, on_signal):
        yield come


@contextmanager
def patient() -> Iterator[None]:
    """Signals do not interrupt what is saved within; a Ctrl-C repeated for seconds ends the
    process even so.
    """
    with handled(ENDING, Insistence()):
        yield


class Insistence:
    """Counts signals; a third Ctrl-C ends the process where the first is long past."""

    def __init__(self) -> None:
        self.come: list[int] = []
        self._first_s = 0.0

    def __call__(self, number: int) -> None:
        if not self.come:
            self._first_s = time.monotonic()
        self.come.append(number)
        is_late = time.monotonic() - self._first_s > _PATIENCE_S
        if number == signal.SIGINT and self.num_interrupts > 2 and is_late:
            os._exit(128 + number)

    @property
    def num_interrupts(self) -> int:
        return self.come.count(signal.SIGINT)


def die_of(number: int) -> NoReturn:
    """End as if the signal had not been handled: supervisors and shells tell the two apart."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # where it is blocked

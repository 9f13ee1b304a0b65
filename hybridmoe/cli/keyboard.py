"""Keyboard while the model works: no echo, and what is typed waits for the next prompt."""

import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

__all__ = ["Keyboard", "edited"]

_SEQUENCES = re.compile(r"\x1b(?:\[[0-9;?<>]*[ -/]*[@-~]|O.|[^\[O]?)", re.DOTALL)
_ERASE = "\x7f\b"
_QUIET_S = 0.02  # a terminal that has more to deliver does so sooner


class Keyboard:
    """Standard input of a terminal; without one, it does nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdin if stream is None else stream
        self._typed = ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Turn the echo off, and keep what is typed meanwhile; Ctrl-C and Ctrl-Z act as always."""
        try:
            import termios

            descriptor = self._stream.fileno()
            before = termios.tcgetattr(descriptor)
        except (ImportError, OSError, ValueError, termios.error):  # no terminal
            yield
            return
        quiet = before.copy()
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        quiet[3] |= termios.NOFLSH  # else Ctrl-C drops what was typed before it
        quiet[6] = [*before[6]]
        quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
        try:
            yield
        finally:
            try:
                self._typed += _waiting(descriptor)
            finally:
                with suppress(termios.error):  # the terminal is gone
                    termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    def take(self) -> str:
        """Return the text that was typed, as edited; it is returned once."""
        text, self._typed = edited(self._typed), ""
        return text


def edited(typed: str) -> str:
    """Apply the erase key, and leave out other keys that write no text, and Enter at the end."""
    text: list[str] = []
    for letter in _SEQUENCES.sub("", typed).replace("\r", "\n"):
        if letter in _ERASE:
            del text[-1:]
        elif letter in "\n\t" or letter.isprintable():
            text.append(letter)
    return "".join(text).rstrip("\n")


def _waiting(descriptor: int) -> str:
    found = bytearray()
    with suppress(OSError):
        while select.select([descriptor], [], [], _QUIET_S if found else 0)[0]:
            if not (some := os.read(descriptor, 1 << 16)):
                break
            found += some
    return found.decode("utf-8", "ignore")

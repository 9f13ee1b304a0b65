"""Row of the field table."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["APIS", "Api", "Fate", "Row", "done", "harmless", "refused"]

Api = Literal["chat", "completions", "responses", "messages"]
Fate = Literal["done", "refused", "harmless"]
APIS: dict[str, Api] = {"c": "chat", "t": "completions", "r": "responses", "m": "messages"}


@dataclass(frozen=True, slots=True)
class Row:
    """Fields with one fate in one or several APIs."""

    fate: Fate
    apis: tuple[Api, ...]
    names: tuple[str, ...]
    why: str  # what it does, or why it is refused or harmless
    neutral: tuple[Any, ...] = ()  # values of refused fields that ask for nothing


def done(letters: str, names: str, why: str) -> Row:
    """Make a row of fields that take effect. letters: keys of `APIS`; names: apart by spaces."""
    return _row("done", letters, names, why)


def refused(letters: str, names: str, why: str, *neutral: Any) -> Row:
    """Make a row of fields that get 400, but for their neutral values."""
    return _row("refused", letters, names, why, *neutral)


def harmless(letters: str, names: str, why: str) -> Row:
    """Make a row of fields without which the answer is the same."""
    return _row("harmless", letters, names, why)


def _row(fate: Fate, letters: str, names: str, why: str, *neutral: Any) -> Row:
    return Row(fate, tuple(APIS[x] for x in letters), tuple(names.split()), why, neutral)

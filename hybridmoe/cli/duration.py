"""Times on the command line: 30, 30s, 15m, 2h; and for people."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["about", "time_option"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_MOST_S = 30 * 24 * 3600.0


F = TypeVar("F", bound=Callable[..., Any])


def time_option(*names: str, default: str | None = None, help: str) -> Callable[[F], F]:
    """Make an option whose value is a time, which the command gets in seconds."""
    return click.option(
        *names,
        metavar="TIME",
        default=default,
        callback=_seconds,
        help=f"{help} [default: {default or 'never'}]",
    )


def about(seconds: float) -> str:
    """Write a time in the unit that people would choose: 0.4 s, 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read a number with a unit, or of seconds."""
    if value is None:
        return None
    text = value.strip().lower()
    has_unit = text[-1:] in _UNITS_S
    try:
        seconds = float(text[:-1] if has_unit else text) * _UNITS_S.get(text[-1:], 1.0)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= _MOST_S:
        raise click.BadParameter(f"{value!r:.40}: expected a time such as 30s, 15m or 2h")
    return seconds

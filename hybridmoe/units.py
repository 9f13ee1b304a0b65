"""Parsing and formatting of sizes in bytes."""

import math
import re
from collections.abc import Callable

from hybridmoe.errors import ConfigError

__all__ = ["GIB", "at_least", "at_most", "format_bytes", "parse_bytes"]

GIB = 1 << 30

_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_MOST_BYTES = 1 << 50


def parse_bytes(text: str, *, needs_unit: bool = False) -> int:
    """Parse a size such as 12GiB, 12G (the same), 12GB (by 1000) or 4096 (unless it needs a unit).

    Errors: ConfigError.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])(IB|B)?)?", text.strip().upper())
    base = 1000 if match and match[3] == "B" else 1024
    size = float(match[1]) * base ** _POWERS.get(match[2], 0) if match else 0.0
    if match is None or size > _MOST_BYTES or (needs_unit and match[2] is None):
        raise ConfigError(f"{text!r:.40}: expected a size such as 12GiB or 800MiB")
    return int(size)


def format_bytes(num_bytes: float) -> str:
    """Format a size with the largest binary unit below it: `1.50 GiB`."""
    size, unit = _scaled(num_bytes)
    return f"{size:.2f} {unit}" if unit != _UNITS[0] else f"{num_bytes:.0f} {unit}"


def at_least(num_bytes: int) -> str:
    """Format a size for an option, rounded up: `1.50GiB`, which `parse_bytes` takes."""
    return _rounded(num_bytes, math.ceil)


def at_most(num_bytes: int) -> str:
    """Format a size for an option, rounded down: `1.50GiB`, which `parse_bytes` takes."""
    return _rounded(num_bytes, math.floor)


def _rounded(num_bytes: int, rounding: Callable[[float], int]) -> str:
    size, unit = _scaled(num_bytes)
    return str(num_bytes) if unit == _UNITS[0] else f"{rounding(100 * size) / 100:.2f}{unit}"


def _scaled(num_bytes: float) -> tuple[float, str]:
    size, unit = float(num_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return size, _UNITS[unit]

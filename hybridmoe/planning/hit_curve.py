"""Hit curve: the hit rate of a cache over its slots, from the simulation of a trace.

A file is one JSON object, `{"slots": [480, 960, ...], "hit_rate": [0.2, 0.35, ...]}`: slots of all
layers together, ascending; rates that a policy reached on a trace. Other keys are for people.
Between two points the curve is a line; before the first it comes from 0 slots, after the last it
stays. `hybridmoe bench cache` writes one, `hybridmoe plan` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hybridmoe.errors import ConfigError

__all__ = ["CurvePoints", "read_hit_curve", "write_hit_curve"]

_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class CurvePoints:
    """Measured points; a call gives the hit rate of any number of slots."""

    slots: tuple[float, ...]
    hit_rate: tuple[float, ...]

    def __call__(self, num_slots: int) -> float:
        return float(np.interp(num_slots, (0.0, *self.slots), (0.0, *self.hit_rate)))


def write_hit_curve(path: Path, curve: CurvePoints, about: Mapping[str, Any]) -> None:
    """Write a file. about: further keys, for people. Errors: OSError."""
    values = {"slots": curve.slots, "hit_rate": curve.hit_rate}
    path.write_text(json.dumps({**about, **values}, indent=1))


def read_hit_curve(path: Path) -> CurvePoints:
    """Read and check a file. Errors: ConfigError, one line."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path.name}: more than {_MOST_BYTES} bytes, expected a hit curve")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path.name}: is no JSON") from None
    columns = []
    for name, most in (("slots", float("inf")), ("hit_rate", 1.0)):
        values = found.get(name) if isinstance(found, dict) else None
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path.name}: {name}: expected a list of numbers")
        for value in values:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= most or value == float("inf"):
                raise ConfigError(f"{path.name}: {name}: found {value!r:.40}, not from 0 on")
        columns.append(tuple(map(float, values)))
    slots, rates = columns
    if len(slots) != len(rates):
        raise ConfigError(f"{path.name}: {len(slots)} slots but {len(rates)} hit rates")
    for name, column in (("slots", slots), ("hit_rate", rates)):
        if any(a > b for a, b in pairwise(column)):
            raise ConfigError(f"{path.name}: {name}: expected numbers that ascend")
    return CurvePoints(slots, rates)

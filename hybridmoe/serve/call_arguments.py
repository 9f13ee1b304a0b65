"""Tool-call arguments as an object, for APIs that do not pass JSON text."""

import json
import math
from typing import Any

__all__ = ["as_object"]


def as_object(arguments: str) -> dict[str, Any]:
    """Parse arguments, as a model has written them.

    Arguments that are no object (cut off, or the model's mistake) stand under the key "_unparsed".
    """
    try:
        value = json.loads(arguments, parse_constant=str, parse_float=_number)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"_unparsed": arguments}


def _number(digits: str) -> float | str:
    """Parse a float; an infinite one, which JSON cannot hold, stays text."""
    value = float(digits)
    return digits if math.isinf(value) else value

"""Lookups in a GGUF file's metadata, with types, ranges and defaults.

All of them raise GGUFError for a missing key without a default and for an unusable value.
"""

from collections.abc import Mapping
from typing import Any

from hybridmoe.errors import GGUFError, UnsupportedModelError, short

__all__ = ["MetadataKeys"]

_MAX_DIM = 1 << 24  # generous for a real model, and no product of two overflows 63 bits


class MetadataKeys:
    """Typed, range-checked lookups of metadata below one key prefix."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self._metadata = metadata
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self._metadata

    def bad(self, key: str, found: object, expected: str) -> GGUFError:
        """Make the error for an unusable value."""
        return GGUFError(f"{self.prefix}{key} is {short(found)}; expected {expected}")

    def count(
        self,
        key: str,
        *,
        default: int | None = None,
        least: int = 1,
        most: int = _MAX_DIM,
        layers: range | None = None,
    ) -> int:
        """Look up a whole number, or a list of one for each layer that has the same for all.

        layers: that have what is counted, None = all; the others' values mean nothing.
        """
        value = self._value(key, default)
        if isinstance(value, list):
            value = self._of_layers(key, value, layers)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.bad(key, value, f"a whole number from {least} to {most}")
        return value

    def number(
        self, key: str, *, default: float | None = None, least: float = -1e6, most: float = 1e6
    ) -> float:
        """Look up a number."""
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:  # also false for NaN
            raise self.bad(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Look up a truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, value, "true or false")
        return value

    def flags(self, key: str) -> list[bool] | None:
        """Look up a list of truth values, as booleans or as 0 and 1; None if it is missing."""
        value = self._metadata.get(self.prefix + key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or any(v not in (0, 1) for v in value):
            raise self.bad(key, value, "a list of true or false")
        return [bool(v) for v in value]

    def refuse(self, key: str, *, neutral: float) -> None:
        """Raise UnsupportedModelError if the file switches on an unsupported feature."""
        value = self._metadata.get(self.prefix + key, neutral)
        if value != neutral:
            raise UnsupportedModelError(f"{self.prefix}{key} is {short(value)}; not supported")

    def text(self, key: str, *, default: str) -> str:
        """Look up a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, "a string")
        return value

    def _of_layers(self, key: str, values: list[Any], layers: range | None) -> Any:
        num_blocks = self._metadata.get(self.prefix + "block_count")
        if len(values) != num_blocks or not values:
            expected = f"a whole number, or one for each of {short(num_blocks)} layers"
            raise self.bad(key, values, expected)
        chosen = values if layers is None else values[layers.start : layers.stop]
        if any(value != chosen[0] for value in chosen):
            raise UnsupportedModelError(
                f"{self.prefix}{key} is {short(values)}; layers of different sizes are not"
                " supported"
            )
        return chosen[0]

    def _value(self, key: str, default: Any) -> Any:
        value = self._metadata.get(self.prefix + key, default)
        if value is None:
            raise GGUFError(f"{self.prefix}{key} is missing")
        return value

"""Options declared once: fields of a frozen dataclass, annotated with help text, range and flags.

    num_threads: Annotated[int | None, Count("CPU threads", least=1, unset="physical cores")] = None

The dataclass checks its fields by these declarations (`check_options`), and the command line makes
its options from them (cli/options.py).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from hybridmoe.errors import ConfigError, short
from hybridmoe.units import parse_bytes

__all__ = ["Choice", "Count", "Devices", "File", "FolderLimit", "FolderSize", "Number", "Option"]
__all__ += [
    "AUTO",
    "Address",
    "Flag",
    "Size",
    "Sizes",
    "Speculate",
    "Speculation",
    "Texts",
    "Weights",
    "check_options",
    "gpu_numbers",
]
__all__ += ["options_of"]


@dataclass(frozen=True, slots=True)
class Option:
    """Declaration of one option; the subclass is its type."""

    help: str
    flags: tuple[str, ...] = ()  # on the command line; empty: the field's name with dashes
    metavar: str | None = None
    unset: str | None = None  # meaning of None, for the help text

    def read(self, value: Any) -> Any:
        """Convert a value as users write it. Errors: ValueError that says what was expected."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Count(Option):
    """Whole number in a closed range."""

    least: int = 0
    most: int | None = None

    def read(self, value: Any) -> int:
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if is_count and value >= self.least and (self.most is None or value <= self.most):
            return int(value)
        if self.most is None:
            raise ValueError(f"a whole number from {self.least} on")
        raise ValueError(f"a whole number, {self.least} to {self.most}")


@dataclass(frozen=True, slots=True)
class Number(Option):
    """Number above a bound, up to another."""

    above: float = -math.inf
    most: float = math.inf

    def read(self, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and self.above < value <= self.most:  # False for NaN
            return float(value)
        raise ValueError(f"a number above {self.above:g}, at most {self.most:g}")


@dataclass(frozen=True, slots=True)
class Size(Option):
    """Size in bytes, or as text such as "12GiB"."""

    def read(self, value: Any) -> int:
        if isinstance(value, str):
            try:
                value = parse_bytes(value)
            except ConfigError:
                raise ValueError("a size such as 12GiB or 800MiB") from None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError("a size of 1 byte or more")
        return int(value)


@dataclass(frozen=True, slots=True)
class Sizes(Size):
    """Size, or several as a list or as text such as "20GiB,10GiB": a tuple."""

    def read(self, value: Any) -> Any:
        if isinstance(value, str) and "," in value:
            value = value.split(",")
        if not isinstance(value, list | tuple):
            return Size.read(self, value)
        return tuple(Size.read(self, one) for one in value)


@dataclass(frozen=True, slots=True)
class Devices(Option):
    """One of several words, or GPUs by number: `cuda:0,cuda:1`."""

    words: tuple[str, ...] = ()

    def read(self, value: Any) -> str:
        if value in self.words:
            return str(value)
        numbers = gpu_numbers(value) if isinstance(value, str) else ()
        if not numbers:
            words = ", ".join(self.words)
            raise ValueError(f"one of {words}, or GPUs by number such as cuda:0,cuda:1")
        if len(set(numbers)) < len(numbers):
            raise ValueError("each GPU once")
        return str(value)


def gpu_numbers(device: str) -> tuple[int, ...]:
    """Numbers of `cuda:0,cuda:1`, in order; empty for other text."""
    names = [name.strip() for name in device.split(",")]
    found = [re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", name) for name in names]
    return tuple(int(match[1]) for match in found if match) if all(found) else ()


@dataclass(frozen=True, slots=True)
class Choice(Option):
    """One of several words."""

    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> str:
        if value not in self.choices:
            raise ValueError(f"one of {', '.join(self.choices)}")
        return str(value)


@dataclass(frozen=True, slots=True)
class File(Option):
    """Path of a file."""

    def read(self, value: Any) -> Path:
        if not isinstance(value, str | Path):
            raise ValueError("the name of a file")
        return Path(value)


class FolderLimit(NamedTuple):
    """Folder, and the bytes that its files may take."""

    path: Path
    num_bytes: int


@dataclass(frozen=True, slots=True)
class FolderSize(Option):
    """Folder and a size, as text such as "DIR=20GiB" or as a pair."""

    def read(self, value: Any) -> FolderLimit:
        parts = value.rpartition("=")[::2] if isinstance(value, str) else value
        if not isinstance(parts, tuple) or len(parts) != 2 or not str(parts[0]):
            raise ValueError("a folder and its size, such as DIR=20GiB")
        path = File.read(File(""), parts[0])
        try:
            path = path.expanduser()
        except RuntimeError:  # no such user
            raise ValueError("a folder that exists, or can be made") from None
        return FolderLimit(path, Size.read(Size(""), parts[1]))


class Speculation(NamedTuple):
    """Source of draft tokens, and how many of them a sequence may have in a step."""

    source: str  # "lookup" in its own text, "mtp", "off"; "auto": MTP where it is predicted to pay
    most: int
    is_fixed: bool = True  # as many in every step; else as many as measured to pay, or none

    def __str__(self) -> str:
        if self.source == "lookup":
            return str(self.most)
        return f"mtp:{self.most}" if self.source == "mtp" and self.is_fixed else self.source


_MOST_WEIGHT = 1e9  # sums of such weights stay exact enough
_MOST_DRAFTS = 64
_MTP_DRAFTS = 3  # beyond them, a layer that was trained to predict one token is rarely right
AUTO = Speculation("auto", _MTP_DRAFTS, is_fixed=False)
_SPECULATIONS = {
    "auto": AUTO,
    "off": Speculation("off", 0),
    "mtp": Speculation("mtp", _MTP_DRAFTS, is_fixed=False),
}


@dataclass(frozen=True, slots=True)
class Speculate(Option):
    """Number of draft tokens by prompt lookup, or `mtp`, `mtp:N`, `auto`, `off`."""

    def read(self, value: Any) -> Speculation:
        if isinstance(value, Speculation):
            return value
        if value in _SPECULATIONS:
            return _SPECULATIONS[value]
        is_mtp = isinstance(value, str) and value.startswith("mtp:")
        if isinstance(value, str):
            digits = value.removeprefix("mtp:")
            value = int(digits) if digits.isascii() and digits.isdigit() else -1
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if not is_count or not is_mtp <= value <= _MOST_DRAFTS:
            raise ValueError(f"0 to {_MOST_DRAFTS} tokens, mtp, mtp:N, auto or off")
        if is_mtp:
            return Speculation("mtp", value)
        return Speculation("lookup", value) if value else _SPECULATIONS["off"]


@dataclass(frozen=True, slots=True)
class Texts(Option):
    """Several strings, in order."""

    def read(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError("a list of strings")
        return tuple(value)


@dataclass(frozen=True, slots=True)
class Flag(Option):
    """Switch, off by default."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return value


@dataclass(frozen=True, slots=True)
class Address(Option):
    """Host and port of TCP: `10.0.0.1:29501`."""

    def read(self, value: Any) -> str:
        host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
            raise ValueError("HOST:PORT")
        return str(value)


@dataclass(frozen=True, slots=True)
class Weights(Option):
    """Two or more numbers above 0, as a list or as text such as "3,1": a tuple."""

    def read(self, value: Any) -> tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            found = tuple(map(float, parts))
        except (TypeError, ValueError):
            found = ()
        if len(found) < 2 or not all(0 < weight <= _MOST_WEIGHT for weight in found):
            raise ValueError(f"two or more numbers above 0, at most {_MOST_WEIGHT:g}, such as 3,1")
        return found


def options_of(owner: type) -> Mapping[str, Option]:
    """The options that a dataclass declares, by field name and in the order of its fields."""
    hints = get_type_hints(owner, include_extras=True)
    found = {}
    for declared in fields(owner):
        hint = hints[declared.name]
        assert get_origin(hint) is Annotated, f"{owner.__name__}.{declared.name} is no option"
        found[declared.name] = next(arg for arg in get_args(hint) if isinstance(arg, Option))
    return found


def check_options(instance: Any) -> None:
    """Check and convert the fields of a frozen dataclass; call from its `__post_init__`.

    None passes where it is the default. Errors: ConfigError with the field's name.
    """
    options = options_of(type(instance))
    for declared in fields(instance):
        name, value = declared.name, getattr(instance, declared.name)
        if value is None and declared.default is None:
            continue
        try:
            object.__setattr__(instance, name, options[name].read(value))
        except ValueError as error:
            raise ConfigError(f"{name}={short(value)}: expected {error}") from None

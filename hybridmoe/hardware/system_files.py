"""Reading of small files of /proc and /sys, which may be missing, unreadable or malformed.

What cannot be read or parsed is left out: "", None or nothing.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = [
    "ROOT", "parse_int", "parse_numbers", "read_choice", "read_int", "read_sizes", "read_text",
]  # fmt: skip

ROOT = Path("/")
_MAX_DIGITS = 18
_MAX_NUMBER = 1 << 16  # of CPUs or nodes, more than Linux can be built for


def read_text(path: Path) -> str:
    """Read a file without surrounding blanks."""
    with suppress(OSError, ValueError):
        return path.read_text(errors="replace").strip()
    return ""


def parse_int(text: str) -> int | None:
    """Parse a decimal number without a sign."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def read_int(path: Path) -> int | None:
    """Read a decimal number."""
    return parse_int(read_text(path))


def read_choice(path: Path) -> str:
    """Read the chosen one of "always [madvise] never"."""
    return read_text(path).partition("[")[2].partition("]")[0]


def read_sizes(path: Path, colon: str = ":") -> dict[str, int]:
    """Read lines such as "Node 0 MemTotal: 12 kB", in bytes by the word before the colon."""
    found = {}
    for line in read_text(path).splitlines():
        names, _, rest = line.partition(colon)
        words = rest.split()
        if names.strip() and words and (number := parse_int(words[0])) is not None:
            found[names.split()[-1]] = number * (1024 if words[1:] == ["kB"] else 1)
    return found


def parse_numbers(text: str) -> Iterator[int]:
    """Parse a list such as 0-3,8."""
    for part in text.split(","):
        words = [parse_int(word.strip()) for word in part.split("-")]
        first, last = words[0], words[-1]
        if len(words) <= 2 and first is not None and last is not None:
            yield from range(first, min(last, _MAX_NUMBER) + 1)

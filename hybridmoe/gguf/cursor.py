"""Bounds-checked cursor over the bytes of a GGUF header.

Reads little-endian numbers and strings, and fails with a message; does not know a header's fields.
"""

import mmap
import struct
from typing import NoReturn

from hybridmoe.errors import GGUFError

__all__ = ["Cursor", "MetadataScalar", "printable"]

MetadataScalar = bool | int | float | str

# Limits, far above any real file (K2: 8 MB of header, 0.5 M array elements).
MAX_HEADER_BYTES = 1 << 28
_CUT_OFF = "its header is cut off, or damaged; a header takes up to 20 MB"
MAX_ELEMENTS = 1 << 23  # of all arrays together
MAX_NAME_BYTES = (1 << 16) - 1

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def printable(text: str, limit: int = 80) -> str:
    """Make text from a file safe for one line on a terminal: escaped and cut at `limit`."""
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."


class Cursor:
    """Position in a header; every read is checked against the end first."""

    __slots__ = ("data", "elements_left", "end", "file", "pos")

    def __init__(self, data: mmap.mmap, file: str) -> None:
        self.data = data
        self.file = file
        self.pos = 0
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.elements_left = MAX_ELEMENTS

    def fail(self, field: str, problem: str) -> NoReturn:
        raise GGUFError(f"{self.file}: {field}: {problem}")

    def need(self, num_bytes: int, field: str) -> None:
        """Fail if fewer than `num_bytes` bytes are left."""
        left = self.end - self.pos
        if num_bytes <= left:
            return
        if self.end < len(self.data):
            self.fail(field, f"the header is longer than the limit of {MAX_HEADER_BYTES} bytes")
        self.fail(
            field,
            f"truncated: {num_bytes} bytes expected at byte {self.pos}, {left} left in the file:"
            f" {_CUT_OFF}",
        )

    def u32(self, field: str) -> int:
        self.need(4, field)
        value: int = _U32.unpack_from(self.data, self.pos)[0]
        self.pos += 4
        return value

    def u64(self, field: str) -> int:
        self.need(8, field)
        value: int = _U64.unpack_from(self.data, self.pos)[0]
        self.pos += 8
        return value

    def count(self, field: str, limit: int, min_bytes: int) -> int:
        """Read a number of items that take at least `min_bytes` each."""
        count = self.u64(field)
        fitting = (self.end - self.pos) // min_bytes
        if count > min(limit, fitting):
            self.fail(
                field,
                f"found {count}, expected at most {min(limit, fitting)}"
                + (
                    f" (more do not fit into the rest of the file: {_CUT_OFF})"
                    if fitting < limit
                    else ""
                ),
            )
        return count

    def bytes(self, field: str) -> bytes:
        length = self.u64(field)
        self.need(length, field)
        start = self.pos
        self.pos += length
        return self.data[start : self.pos]

    def name(self, field: str) -> str:
        """Read a key or tensor name: UTF-8, not empty, of bounded length."""
        raw = self.bytes(field)
        if not 0 < len(raw) <= MAX_NAME_BYTES:
            self.fail(field, f"name of {len(raw)} bytes, expected 1 to {MAX_NAME_BYTES}")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(field, f"name is not UTF-8: {raw[:40]!r}")

    def strings(self, count: int, field: str) -> list[MetadataScalar]:
        """Read `count` strings, in a tight loop: a vocabulary has 10^5 of them."""
        data, pos, end, unpack = self.data, self.pos, self.end, _U64.unpack_from
        strings: list[MetadataScalar] = []
        for i in range(count):
            start = pos + 8
            if start <= end:
                pos = start + unpack(data, pos)[0]
            if start > end or pos > end:
                self.pos = start - 8
                self.bytes(f"{field}[{i}]")
            strings.append(str(data[start:pos], "utf-8", "replace"))
        self.pos = pos
        return strings

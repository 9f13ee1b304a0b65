"""Memory modules as the firmware describes them, where it may be read.

The SMBIOS table is DSP0134's structure type 17; Linux lets root alone read it as a rule.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridmoe.hardware.system_files import ROOT

__all__ = ["MemoryModules", "NoModules", "find_memory_modules"]

_MEMORY_DEVICE, _END = 17, 127
_SIZE, _SPEED, _CONFIGURED_SPEED = 0x0C, 0x15, 0x20  # offsets of 16-bit numbers
_CHANNEL_BYTES = 8  # of a transfer


@dataclass(frozen=True, slots=True)
class MemoryModules:
    """Modules that are plugged in, and the slots for them."""

    num_modules: int
    num_slots: int
    transfers: int  # a second, of the slowest, in millions

    @property
    def peak_bytes(self) -> float:
        """Bytes a second if each module had a channel of its own."""
        return self.num_modules * self.transfers * 1e6 * _CHANNEL_BYTES


@dataclass(frozen=True, slots=True)
class NoModules:
    """Reason why nothing is known of the modules."""

    reason: str
    command: str = ""  # that shows them


def find_memory_modules(root: Path = ROOT) -> MemoryModules | NoModules:
    """Parse the firmware's table."""
    try:
        table = (root / "sys/firmware/dmi/tables/DMI").read_bytes()
    except PermissionError:
        return NoModules("only root may read the firmware's table", "sudo dmidecode --type memory")
    except OSError:
        return NoModules("not shown here (a virtual machine or container, or firmware without it)")
    slots = [fields for kind, fields in _structures(table) if kind == _MEMORY_DEVICE]
    speeds = [
        _word(fields, _CONFIGURED_SPEED) or _word(fields, _SPEED)
        for fields in slots
        if _word(fields, _SIZE) not in (0, 0xFFFF)
    ]
    known = [speed for speed in speeds if 0 < speed < 0xFFFF]
    if not known:
        return NoModules("the firmware's table names none with a speed")
    return MemoryModules(len(speeds), len(slots), min(known))


def _structures(table: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the fields of each structure; ends at the first that is malformed."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        texts = table.find(b"\0\0", at + length)
        if length < 4 or kind == _END or texts < 0:
            return
        yield kind, table[at : at + length]
        at = texts + 2


def _word(fields: bytes, offset: int) -> int:
    """Read a 16-bit number; 0 where the structure is of an older, shorter version."""
    return struct.unpack_from("<H", fields, offset)[0] if offset + 2 <= len(fields) else 0

"""Reader of GGUF models: validates headers, maps tensors into memory, follows split parts.

Never reads or copies tensor data: a `Tensor` is a read-only view of the memory map, so opening a
terabyte costs as much as reading its headers. `hybridmoe.config` and `hybridmoe.model` check the
tensors that a model requires.

If another process truncates an open file, reads end in SIGBUS, as with any memory map.
"""

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

import numpy as np

from hybridmoe.errors import GGUFError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.header import Header, MetadataValue, parse_header
from hybridmoe.gguf.huge_pages import advise_huge_pages
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.split import check_part, count_parts, part_path

__all__ = ["FileState", "GGUFFile", "Tensor", "map_file"]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Tensor of an open file; its bytes stay in the memory map."""

    name: str
    type: QuantType
    shape: tuple[int, ...]  # C order (reverse of GGUF's ne): outermost first, row length last
    data: np.ndarray  # (num_bytes,) uint8, contiguous, read-only
    num_bytes: int
    part: int  # index into GGUFFile.parts
    offset: int  # in bytes, from the start of that part

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_matrices(self) -> int:
        """Matrices of a stack, such as a layer's experts; they lie one after the other."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def num_rows(self) -> int:
        """Rows of each matrix; a vector is one row."""
        return self.shape[-2] if len(self.shape) > 1 else 1


class FileState(NamedTuple):
    """Identity, size and last write of a file: equal as long as it has the same content."""

    device: int
    inode: int
    num_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return the state of an open file. Errors: OSError."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class GGUFFile:
    """Open, validated GGUF file; a context manager.

    After `close` it has no tensors; arrays handed out before keep their memory map alive until they
    are garbage-collected.
    """

    def __init__(
        self,
        path: Path,
        parts: tuple[Path, ...],
        metadata: Mapping[str, MetadataValue],
        tensors: Mapping[str, Tensor],
        maps: tuple[mmap.mmap, ...],
        version: int,
        states: tuple[FileState, ...],
    ) -> None:
        """states: of the parts, when they were mapped."""
        self.path = path
        self.version = version
        self.parts = parts
        self.states = states
        self.metadata = metadata
        self.tensors = tensors
        self.num_bytes = sum(map(len, maps))
        self._maps = maps

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "GGUFFile":
        """Open a GGUF, or all parts of a split one by its first.

        Cost:   one pass over the headers: 0.3 s for K2's vocabulary of 163 840 tokens.
        Errors: GGUFError, one line: file name, field, found and expected value.
        """
        path = Path(path)
        view, state = map_file(path)
        header = parse_header(view, _name(path))
        count = count_parts(path, header.metadata)
        parts, maps = [path], [view]
        seen = {state: path}
        tensors: dict[str, Tensor] = {}
        _add_tensors(tensors, header, view, parts)
        for number in range(2, count + 1):
            part = part_path(path, number, count)
            view, state = map_file(part, f" (part {number} of {count})")
            if state in seen:
                other = _name(seen[state])
                raise GGUFError(f"{_name(part)}: split.no: this is the same file as {other}")
            seen[state] = part
            part_header = parse_header(view, _name(part))
            check_part(part, part_header.metadata, header.metadata, number)
            parts.append(part)
            maps.append(view)
            _add_tensors(tensors, part_header, view, parts)
        expected = header.metadata.get("split.tensors.count")
        if count > 1 and expected != len(tensors):
            raise GGUFError(
                f"{_name(path)}: split.tensors.count: found {expected}, "
                f"but the {count} parts hold {len(tensors)} tensors"
            )
        return cls(
            path,
            tuple(parts),
            MappingProxyType(header.metadata),
            MappingProxyType(tensors),
            tuple(maps),
            header.version,
            tuple(seen),
        )

    def avoid_huge_pages(self) -> None:
        """Read what is not cached yet in small pages: for machines with several NUMA nodes.

        A huge page lies on one node, and would hold rows that threads of several nodes read.
        """
        for part_map in self._maps:
            advise_huge_pages(part_map, wanted=False)

    def close(self) -> None:
        """Unmap the file, now or with the last array that views it."""
        self.tensors = MappingProxyType({})
        maps, self._maps = self._maps, ()
        for part_map in maps:
            try:
                part_map.close()
            except BufferError:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {len(self.tensors)} tensors, {self.num_bytes} bytes)"


def _add_tensors(
    tensors: dict[str, Tensor], header: Header, part_map: mmap.mmap, parts: list[Path]
) -> None:
    """Add the tensors of the last of `parts` as views of its map. Errors: GGUFError."""
    whole = np.frombuffer(part_map, np.uint8)
    part = len(parts) - 1
    for info in header.tensors:
        if info.name in tensors:
            raise GGUFError(
                f"{_name(parts[part])}: tensor {printable(info.name)}: "
                f"also in {_name(parts[tensors[info.name].part])}"
            )
        data = whole[info.offset : info.offset + info.num_bytes]
        tensors[info.name] = Tensor(
            info.name, info.type, info.shape, data, info.num_bytes, part, info.offset
        )


def map_file(path: Path, about: str = "") -> tuple[mmap.mmap, FileState]:
    """Map a regular file read-only. Returns the map and the file's state."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise GGUFError(f"{_name(path)}: is {kind}, expected a GGUF file{about}")
        with open(path, "rb") as file:
            state = FileState.of(file.fileno())
            if state.num_bytes == 0:
                raise GGUFError(f"{_name(path)}: the file is empty, expected a GGUF file{about}")
            view = mmap.mmap(file.fileno(), state.num_bytes, prot=mmap.PROT_READ)
            # Reading from memory is then 10 % faster (docs/log.md), where the file system has them.
            advise_huge_pages(view)
            return view, state
    except FileNotFoundError:
        where = printable(str(path.parent), 200)
        raise GGUFError(f"{_name(path)}: no such file in {where}{about}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GGUFError(f"{_name(path)}: cannot be opened: {reason}{about}") from None


def _name(path: Path) -> str:
    return printable(path.name or str(path), 255)

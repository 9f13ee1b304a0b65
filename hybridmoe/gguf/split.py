"""Names and numbering of split GGUFs: `<stem>-00001-of-000NN.gguf`, opened by the first part.

Pure checks on metadata and paths; reads no file. Source: llama.cpp's gguf-split and loader.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from hybridmoe.errors import GGUFError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.header import MetadataValue

__all__ = ["check_part", "count_parts", "part_path"]

_MAX_PARTS = (1 << 16) - 1
_NAME = re.compile(r"(.*)-[0-9]{5}-of-[0-9]{5}\.gguf", re.DOTALL)


def count_parts(path: Path, metadata: Mapping[str, MetadataValue]) -> int:
    """Return the number of parts of the split that begins with this file; 1 for a whole file.

    Errors: GGUFError for a later part, a name that does not fit the count, or impossible numbers.
    """
    if "split.count" not in metadata:
        return 1
    count = _number(path, metadata, "split.count", 1, _MAX_PARTS)
    if count == 1:
        return 1
    number = _number(path, metadata, "split.no", 0, count - 1)
    _number(path, metadata, "split.tensors.count", 0, 1 << 31)
    first = part_path(path, 1, count)
    if number != 0:
        what = f"found {number} of {count} (counted from 0): this is a later part"
        _fail(path, "split.no", f"{what}, open the first, {printable(first.name, 255)}")
    if path.name != first.name:
        problem = f"found {count}, so the name must end in -00001-of-{count:05d}.gguf"
        _fail(path, "split.count", problem)
    return count


def part_path(path: Path, number: int, count: int) -> Path:
    """Return the path of part `number` (from 1) of the split that `path` belongs to."""
    match = _NAME.fullmatch(path.name)
    stem = match[1] if match else path.stem
    return path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")


def check_part(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    first: Mapping[str, MetadataValue],
    number: int,
) -> None:
    """Check the metadata of part `number` (from 1) against the first part's. Errors: GGUFError."""
    count = first["split.count"]
    assert isinstance(count, int), count
    found = _number(path, metadata, "split.no", 0, count - 1)
    if found != number - 1:
        _fail(path, "split.no", f"found {found}, expected {number - 1}: a wrong or renamed part")
    for key in ("split.count", "split.tensors.count"):
        value = metadata.get(key, first[key])
        if value != first[key]:
            _fail(path, key, f"found {_show(value)}, but {_show(first[key])} in the first part")


def _number(
    path: Path, metadata: Mapping[str, MetadataValue], key: str, low: int, high: int
) -> int:
    value = metadata.get(key)
    if value is None:
        _fail(path, key, "this metadata key is missing in a split file")
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _fail(path, key, f"found {_show(value)}, expected a number from {low} to {high}")
    return value


def _show(value: MetadataValue) -> str:
    return printable(repr(value)) if not isinstance(value, list) else f"a list of {len(value)}"


def _fail(path: Path, key: str, problem: str) -> NoReturn:
    raise GGUFError(f"{printable(path.name, 255)}: {key}: {problem}")

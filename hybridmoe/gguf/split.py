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

__all__ = ["check_part", "part_paths"]

_MAX_PARTS = (1 << 16) - 1
_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def part_paths(path: Path, metadata: Mapping[str, MetadataValue]) -> tuple[Path, ...]:
    """The paths of all parts of the file whose metadata this is, `path` first.

    A file without `split.count`, or with a count of 1, is its own only part. Raises GGUFError for
    a later part, a name that does not fit the count, or numbers that make no sense.
    """
    if "split.count" not in metadata:
        return (path,)
    count = _number(path, metadata, "split.count", 1, _MAX_PARTS)
    number = _number(path, metadata, "split.no", 0, count - 1) if count > 1 else 0
    if count == 1:
        return (path,)
    _number(path, metadata, "split.tensors.count", 0, 1 << 31)
    match = _NAME.fullmatch(path.name)
    stem = match[1] if match else path.stem
    paths = tuple(
        path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)
    )
    if number != 0:
        what = f"found {number} of {count} (counted from 0): this is a later part"
        _fail(path, "split.no", f"{what}, open the first, {paths[0].name}")
    if path.name != paths[0].name:
        problem = f"found {count}, so the name must end in -00001-of-{count:05d}.gguf"
        _fail(path, "split.count", problem)
    return paths


def check_part(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    first: Mapping[str, MetadataValue],
    number: int,
) -> None:
    """Check that `metadata` is that of part `number` (from 1) of the split that `first` begins."""
    count = first["split.count"]
    assert isinstance(count, int)
    found = _number(path, metadata, "split.no", 0, count - 1)
    if found != number - 1:
        _fail(path, "split.no", f"found {found}, expected {number - 1}: a wrong or renamed part")
    found_count = metadata.get("split.count", count)
    if found_count != count:
        _fail(path, "split.count", f"found {_show(found_count)}, but {count} in the first part")
    key = "split.tensors.count"
    if key in metadata and metadata[key] != first[key]:
        problem = f"found {_show(metadata[key])}, but {_show(first[key])} in the first part"
        _fail(path, key, problem)


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

"""Split GGUFs with a wrong, missing, doubled or damaged part: one line names part and field."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_gguf import RawFile, RawTensor, V, key, packed, text_key, u64
from refusal import memory_bound
from tiny_gguf import split_file

from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """Three parts of one file of six tensors."""
    path = tmp_path / "m.gguf"
    tensors, data = packed([RawTensor(f"t{i}", [64]) for i in range(6)])
    RawFile([text_key("general.architecture", "deepseek2")], tensors, data).write(path)
    return split_file(path, 3)


def _part(number: object, count: object = 3, total: object = 6, first: int = 0) -> RawFile:
    """A part with two tensors `t<first>`, `t<first + 1>`; None leaves a key out."""
    tensors, data = packed([RawTensor(f"t{first + i}", [64]) for i in range(2)])
    keys = [text_key("general.architecture", "deepseek2")]
    for name, value in (("no", number), ("count", count), ("tensors.count", total)):
        if isinstance(value, int):
            keys.append(key(f"split.{name}", V.INT64, u64(value % 2**64)))
        elif value is not None:
            keys.append(text_key(f"split.{name}", str(value)))
    return RawFile(keys, tensors, data)


def _missing(parts: list[Path]) -> None:
    parts[1].unlink()


def _hard_link(parts: list[Path]) -> None:
    parts[2].unlink()
    parts[2].hardlink_to(parts[1])


def _symlink_to_first(parts: list[Path]) -> None:
    parts[1].unlink()
    parts[1].symlink_to(parts[0])


def _symlink_cycle(parts: list[Path]) -> None:
    for part, target in ((parts[1], parts[2]), (parts[2], parts[1])):
        part.unlink()
        part.symlink_to(target)


def _swapped(parts: list[Path]) -> None:
    spare = parts[1].with_name("spare")
    parts[1].rename(spare)
    parts[2].rename(parts[1])
    spare.rename(parts[2])


def _copied(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[1].read_bytes())


def _cut(parts: list[Path]) -> None:
    os.truncate(parts[2], parts[2].stat().st_size - 64)


def _many_parts(parts: list[Path]) -> None:
    parts[0] = _part(0, 65535).write(parts[0].with_name("many-00001-of-65535.gguf"))


def _replaced(number: int, file: RawFile) -> Callable[[list[Path]], object]:
    return lambda parts: file.write(parts[number])


SPLITS: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "missing": (_missing, "m-00002-of-00003.gguf: no such file in"),
    "hard link": (_hard_link, "m-00003-of-00003.gguf: split.no: this is the same file as m-00002"),
    "symlink": (_symlink_to_first, "m-00002-of-00003.gguf: split.no: this is the same file as"),
    "cycle": (_symlink_cycle, "Too many levels of symbolic links (part 2 of 3)"),
    "swapped": (_swapped, "m-00002-of-00003.gguf: split.no: found 2, expected 1"),
    "copied": (_copied, "m-00003-of-00003.gguf: split.no: found 1, expected 2"),
    "cut": (_cut, "m-00003-of-00003.gguf: tensor t5: data ends at"),
    "tensor in two parts": (_replaced(2, _part(2, first=1)), "tensor t1: also in m-00001-of-00003"),
    "no number": (_replaced(1, _part(None, first=2)), "split.no: this metadata key is missing"),
    "number as text": (_replaced(1, _part("1", first=2)), "split.no: found '1', expected a number"),
    "other count": (_replaced(1, _part(1, 4, first=2)), "split.count: found 4, but 3 in the first"),
    "other total": (_replaced(1, _part(1, 3, 7, first=2)), "split.tensors.count: found 7, but 6"),
    "not a gguf": (lambda parts: parts[1].write_bytes(b"?"), "m-00002-of-00003.gguf: magic"),
    "a directory": (lambda parts: (parts[1].unlink(), parts[1].mkdir()), "is a directory"),
    "first without number": (_replaced(0, _part(None)), "split.no: this metadata key is missing"),
    "first is later": (_replaced(0, _part(1)), "split.no: found 1 of 3"),
    "number past count": (_replaced(0, _part(3)), "split.no: found 3, expected a number from 0"),
    "negative number": (_replaced(0, _part(-1)), "split.no: found -1"),
    "count 0": (_replaced(0, _part(0, 0)), "split.count: found 0"),
    "count 65536": (_replaced(0, _part(0, 65536)), "split.count: found 65536"),
    "count 2^60": (_replaced(0, _part(0, 2**60)), "split.count: found 1152921504606846976"),
    "count 65535": (_replaced(0, _part(0, 65535)), "so the name must end in -00001-of-65535.gguf"),
    "count as text": (_replaced(0, _part(0, "3")), "split.count: found '3'"),
    "no total": (_replaced(0, _part(0, 3, None)), "split.tensors.count: this metadata key is"),
    "65535 parts": (_many_parts, "many-00002-of-65535.gguf: no such file in"),
    "wrong total": (_replaced(0, _part(0, 3, 5)), "split.tensors.count: found 6, but 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_a_hostile_split_is_refused_by_part_and_field(split: list[Path], case: str) -> None:
    damage, problem = SPLITS[case]
    damage(split)
    with memory_bound(split[0]), pytest.raises(GGUFError) as caught:
        GGUFFile.open(split[0])
    message = str(caught.value)
    assert message.isprintable() and message.startswith(("m-0", "many-0")), message
    assert problem in message, message


def test_missing_tensors_of_a_split_are_counted(split: list[Path]) -> None:
    for i, part in enumerate(split):
        _part(i, 3, 7, first=2 * i).write(part)
    with pytest.raises(GGUFError, match=r"split\.tensors\.count: found 7, but the 3 parts hold 6"):
        GGUFFile.open(split[0])


def test_a_first_part_under_another_name_is_refused(split: list[Path]) -> None:
    renamed = split[0].rename(split[0].with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"^model\.gguf: split\.count: found 3, so the name must"):
        GGUFFile.open(renamed)

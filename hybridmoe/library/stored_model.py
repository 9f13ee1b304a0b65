"""Models in a folder: GGUF files and split ones, by name, with their parts and sizes.

A model's folder below the models folder says where it comes from: OWNER/REPO/FILE.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from hybridmoe.errors import GGUFError
from hybridmoe.gguf.file_types import file_type_name
from hybridmoe.gguf.header import parse_header
from hybridmoe.gguf.reader import map_file

__all__ = [
    "PARTIAL",
    "Condition",
    "StoredModel",
    "is_model_file",
    "model_name",
    "part_number",
    "quant_of",
    "stored_models",
]

PARTIAL = ".part"  # ends the name of a file that is being downloaded
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL | re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/ ])((?:UD-)?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|BF16|F16|F32|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE,
)
# Files beside a model that hold no language model: vision projectors, importance matrices.
_OTHERS = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True)
class Condition:
    """State of a model's files, from their headers."""

    quant: str
    missing_bytes: int  # of parts that are there
    problem: str | None = None  # why no header can be read


@dataclass(frozen=True, slots=True)
class StoredModel:
    """Model in a folder, whole or in parts."""

    root: Path  # the folder that was searched
    folder: Path
    name: str  # the file's, without .gguf and number of the part
    num_parts: int
    files: tuple[Path, ...]  # that exist, in order
    missing_parts: tuple[int, ...]  # counted from 1
    partial: tuple[Path, ...] = ()  # files that a download has begun

    @property
    def path(self) -> Path:
        """File to open: the first part, even if it is missing."""
        return self.folder / self._file_name(1) if 1 in self.missing_parts else self.files[0]

    @property
    def repo(self) -> str:
        """`OWNER/REPO` that the model was downloaded from; empty outside of such folders."""
        parts = self.folder.relative_to(self.root).parts
        return "/".join(parts[:2]) if len(parts) >= 2 else ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that exist, also of partial ones."""
        return sum(file.stat().st_size for file in (*self.files, *self.partial))

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a user may call it by, in lower case."""
        found = [self.name, *(file.name for file in self.files[:1])]
        if self.repo:
            repos = [self.repo, self.repo.partition("/")[2]]
            repos += [repo[:-5] for repo in repos if repo.lower().endswith("-gguf")]
            found += repos
            if quant := quant_of(self.name):
                found += [f"{repo}:{quant}" for repo in repos]
        return tuple(dict.fromkeys(name.lower() for name in found))

    def condition(self) -> Condition:
        """Read the headers. Cost: 0.3 s for K2's vocabulary."""
        quant, missing = quant_of(self.name), 0
        try:
            for file in self.files:
                view, state = map_file(file)
                header = parse_header(view, file.name, needs_data=False)
                quant = quant or file_type_name(header.metadata.get("general.file_type"))
                end = max((t.offset + t.num_bytes for t in header.tensors), default=0)
                missing += max(0, end - state.num_bytes)
        except GGUFError as error:
            return Condition(quant, missing, str(error))
        return Condition(quant, missing)

    def _file_name(self, number: int) -> str:
        if self.num_parts == 1:
            return f"{self.name}.gguf"
        return f"{self.name}-{number:05d}-of-{self.num_parts:05d}.gguf"


def is_model_file(name: str) -> bool:
    """Return True for a GGUF file that is not one of those beside a model."""
    return name.lower().endswith(".gguf") and not name.lower().startswith(_OTHERS)


def part_number(name: str) -> tuple[int, int]:
    """Return a file's number among its model's parts, and their count; 1 and 1 if it is whole."""
    match = _PART.fullmatch(name)
    return (int(match[2]), int(match[3])) if match else (1, 1)


def model_name(path: PurePath) -> str:
    """Name a model by its file: without `.gguf` and without the number of a part."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.name.removesuffix(".gguf")


def quant_of(name: str) -> str:
    """Find the quantization at the end of a model's name, such as `UD-Q2_K_XL`; else empty."""
    match = _QUANT.search(name)
    return match[1].upper() if match else ""


def stored_models(root: Path) -> list[StoredModel]:
    """List the models in a folder and the folders in it, by name; none if it does not exist."""
    found: dict[tuple[Path, str, int], tuple[dict[int, Path], list[Path]]] = {}
    for file in _files_below(root):
        is_partial = file.name.endswith(PARTIAL)
        whole = file.with_name(file.name.removesuffix(PARTIAL))
        if not is_model_file(whole.name) or not file.is_file():  # a link may lead nowhere
            continue
        number, count = part_number(whole.name)
        if 1 <= number <= count:
            key = (file.parent, model_name(whole), count)
            files, partial = found.setdefault(key, ({}, []))
            if is_partial:
                partial.append(file)
            else:
                files[number] = file
    models = [
        StoredModel(
            root, folder, name, count,
            tuple(files[number] for number in sorted(files)),
            tuple(number for number in range(1, count + 1) if number not in files),
            tuple(sorted(partial)),
        )
        for (folder, name, count), (files, partial) in found.items()
    ]  # fmt: skip
    return sorted(models, key=lambda model: (model.name.lower(), model.folder))


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files)

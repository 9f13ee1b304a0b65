"""Models of a repository by quantization, and the choice of one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from hybridmoe.errors import ConfigError, DownloadError
from hybridmoe.gguf.cursor import printable
from hybridmoe.library.hub import HubFile
from hybridmoe.library.stored_model import is_model_file, model_name, part_number, quant_of

__all__ = ["HubModel", "choose_model", "models_of"]


@dataclass(frozen=True, slots=True)
class HubModel:
    """Model of a repository: all of its parts, in order."""

    name: str
    files: tuple[HubFile, ...]

    @property
    def quant(self) -> str:
        """Quantization by the file's name, else its folder's; empty if neither says."""
        folder = PurePosixPath(self.files[0].path).parent.name
        return quant_of(self.name) or quant_of(folder)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(file.num_bytes for file in self.files)


def models_of(repo: str, files: Iterable[HubFile]) -> list[HubModel]:
    """Group the GGUF files of a repository, the largest model first.

    Errors: DownloadError if it has none, or lacks a part.
    """
    found: dict[tuple[PurePosixPath, str, int], dict[int, HubFile]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if is_model_file(path.name):
            number, count = part_number(path.name)
            found.setdefault((path.parent, model_name(path), count), {})[number] = file
    if not found:
        raise DownloadError(f"{repo}: no GGUF file in it; repositories with them end in -GGUF")
    models = []
    for (_, name, count), parts in found.items():
        if sorted(parts) != list(range(1, count + 1)):
            raise DownloadError(f"{repo}: {printable(name, 120)}: {len(parts)} of {count} parts")
        models.append(HubModel(name, tuple(parts[number] for number in sorted(parts))))
    return sorted(models, key=lambda model: (-model.num_bytes, model.name))


def choose_model(repo: str, models: list[HubModel], wanted: str | None) -> HubModel | None:
    """Choose by quantization or name; None if nothing is wanted and several are there.

    Errors: ConfigError.
    """
    if wanted is None:
        return models[0] if len(models) == 1 else None
    text = wanted.lower()
    found = [m for m in models if text in (m.quant.lower(), m.name.lower())]
    # `Q4_K_XL` for `UD-Q4_K_XL`, if it has no other.
    found = found or [m for m in models if m.quant.lower() == f"ud-{text}"]
    if len(found) == 1:
        return found[0]
    known = ", ".join(
        printable(m.name if found else m.quant or m.name, 120) for m in found or models
    )
    problem = f"{len(found)} models are of it" if found else "no such quantization"
    raise ConfigError(f"{repo}:{printable(wanted, 80)}: {problem}; expected one of {known}")

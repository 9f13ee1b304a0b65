"""File of a model that is to be loaded, mapped as this machine's memory needs it."""

from pathlib import Path

from hybridmoe.demo import demo_path
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.topology import current

__all__ = ["open_model"]


def open_model(path: str | Path | None) -> GGUFFile:
    """Map a model's file as this machine's nodes need it; None = the embedded model's."""
    file = GGUFFile.open(demo_path() if path is None else path)
    if len(current().nodes) > 1:
        file.avoid_huge_pages()
    return file

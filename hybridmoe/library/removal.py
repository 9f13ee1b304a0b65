"""Removal of a model: its files, what a download left beside them, and folders that are empty."""

from contextlib import suppress
from pathlib import Path

from hybridmoe.library.stored_model import StoredModel

__all__ = ["download_notes", "remove"]

_NOTES = Path(".cache", "huggingface", "download")  # huggingface_hub's, in its local folder


def remove(model: StoredModel) -> None:
    """Remove a model. Errors: OSError."""
    for file in model.files:
        file.unlink()
    top = model.root.joinpath(*model.folder.relative_to(model.root).parts[:2])
    inner = model.folder.relative_to(top)
    notes = top / _NOTES / inner
    for note in download_notes(notes, model.name):
        note.unlink(missing_ok=True)
    for folder in (notes, *notes.parents, model.folder, *model.folder.parents):
        if folder.is_relative_to(model.root) and folder != model.root:
            with suppress(OSError):  # not empty, or not there
                if folder == top / _NOTES.parent and not any(top.rglob("*.gguf")):
                    for rest in (*folder.rglob("CACHEDIR.TAG"), *folder.rglob(".gitignore")):
                        rest.unlink()
                folder.rmdir()


def download_notes(folder: Path, name: str) -> list[Path]:
    """List what `huggingface_hub` keeps on the files of a model: states and partial downloads."""
    return [path for path in folder.glob("*") if path.name.startswith((f"{name}.", f"{name}-0"))]

"""Removal of a model: its files, those that a download began, and folders that are empty then."""

import shutil
from contextlib import suppress

from hybridmoe.library.stored_model import StoredModel

__all__ = ["remove"]

_CACHE = ".cache"  # of huggingface_hub in its local folders: notes on downloads


def remove(model: StoredModel) -> None:
    """Remove a model. Errors: OSError."""
    for file in (*model.files, *model.partial):
        file.unlink()
    for folder in (model.folder, *model.folder.parents):
        if folder == model.root or not folder.is_relative_to(model.root):
            return
        if {path.name for path in folder.iterdir()} == {_CACHE}:
            shutil.rmtree(folder / _CACHE)
        with suppress(OSError):  # not empty
            folder.rmdir()

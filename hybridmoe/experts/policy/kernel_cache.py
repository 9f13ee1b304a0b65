"""Folder on disk for compiled kernels, keyed by the sources that they are built from.

numba notices changes of a kernel's own module only, but a kernel inlines functions of other modules
and freezes their constants. So each state of these sources has a folder of its own.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["kernel_folder", "source_digest"]

_SHARED = Path(__file__).parent
_PACKAGE = _SHARED.parent.parent
_PREFIX = "hybridmoe-kernels-"
_UNUSED_S = 30 * 86400.0  # after which an older state's folder is removed


def source_digest(folders: Iterable[Path]) -> str:
    """Digest of the names and contents of all modules in these folders."""
    digest = hashlib.sha256()
    for path in sorted({path for folder in folders for path in folder.glob("*.py")}):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def kernel_folder(module: Path, user_folder: str) -> Path | None:
    """Make the folder for a module's kernels; None if no place for it can be written.

    user_folder: parent that the user has set, or "": then the package's `__pycache__`, or else the
    user's cache folder. The sources: the module's folder and this one.
    """
    name = _PREFIX + source_digest((module.parent, _SHARED))
    for parent in [Path(user_folder)] if user_folder else _default_parents():
        folder = parent / name
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # fails on read-only and full disks
            os.utime(folder)
            _remove_unused(parent)
            return folder
    return None


def _default_parents() -> Iterator[Path]:
    yield _PACKAGE / "__pycache__"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():  # "~" stays as it is where there is no home
        yield cache / "hybridmoe"


def _remove_unused(parent: Path) -> None:
    """Remove folders of older sources; a process that still uses one compiles again."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - folder.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)

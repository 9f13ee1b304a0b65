"""Compiled kernels on disk: their folder, and that no stale kernel is used."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridmoe.experts.policy import jit, kernel_cache
from hybridmoe.experts.policy.jit import Kernel
from hybridmoe.experts.policy.kernel_cache import kernel_folder, source_digest

_SOURCES = Path(kernel_cache.__file__).parent


def _double(x: float) -> float:
    return x * 2


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with one module."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "policy.py").write_text("RATE = 1")
    return folder


def test_the_digest_follows_every_source(modules: Path) -> None:
    digests = {source_digest([modules]), source_digest([modules, _SOURCES])}
    (modules / "policy.py").write_text("RATE = 2")
    digests.add(source_digest([modules]))
    (modules / "policy.py").rename(modules / "other.py")
    digests.add(source_digest([modules]))
    (modules / "empty.py").touch()
    digests.add(source_digest([modules]))
    assert len(digests) == 5


def test_an_edited_shared_source_is_compiled_anew(tmp_path: Path) -> None:
    copy = tmp_path / "hybridmoe"
    shutil.copytree(_SOURCES, copy / "experts" / "policy", ignore=lambda *_: {"__pycache__"})
    for package in (copy, copy / "experts"):
        (package / "__init__.py").touch()
    shutil.copy(_SOURCES.parent.parent / "errors.py", copy)
    (tmp_path / "probe.py").write_text("""
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import loop, new_state
from hybridmoe.experts.policy.lists import share

@loop
def share_of_first(state):
    return share(state, 0)

print(share_of_first(new_state(CacheShape(2, 4, 5, 1))))
""")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment["PYTHONPATH"] = str(tmp_path)

    def run() -> str:
        return subprocess.check_output(
            [sys.executable, tmp_path / "probe.py"], env=environment, text=True
        ).strip()

    assert run() == "3"
    folders = list((copy / "__pycache__").iterdir())
    kernels = list(folders[0].rglob("*.nbc"))
    assert len(folders) == 1 and kernels
    lists = copy / "experts" / "policy" / "lists.py"
    text = lists.read_text()
    spare = "(1 if layer < spare else 0)"
    assert spare in text
    lists.write_text(text.replace(spare, "9"))
    assert run() == "11"
    assert len(list((copy / "__pycache__").iterdir())) == 2


def test_the_folder_is_below_the_users_own(tmp_path: Path, modules: Path) -> None:
    folder = kernel_folder(modules / "policy.py", str(tmp_path / "own"))
    assert folder is not None and folder.parent == tmp_path / "own" and folder.is_dir()
    (tmp_path / "file").touch()
    assert kernel_folder(modules / "policy.py", str(tmp_path / "file")) is None


def test_beside_the_package_comes_before_the_users_cache(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "_PACKAGE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = kernel_folder(modules / "policy.py", "")
    assert folder is not None and folder.parent == tmp_path / "package" / "__pycache__"
    shutil.rmtree(tmp_path / "package")
    (tmp_path / "package").touch()  # no folder can be made below
    folder = kernel_folder(modules / "policy.py", "")
    assert folder is not None and folder.parent == tmp_path / "cache" / "hybridmoe"


def test_only_folders_that_are_long_unused_are_removed(tmp_path: Path, modules: Path) -> None:
    old, young, foreign = (
        tmp_path / name for name in ("hybridmoe-kernels-1", "hybridmoe-kernels-2", "other")
    )
    for folder in (old, young, foreign):
        folder.mkdir()
    month_ago = time.time() - 31 * 86400
    os.utime(old, (month_ago, month_ago))
    os.utime(foreign, (month_ago, month_ago))
    mine = kernel_folder(modules / "policy.py", str(tmp_path))
    assert set(tmp_path.iterdir()) == {young, foreign, mine, modules}
    assert mine is not None
    os.utime(mine, (month_ago, month_ago))
    assert kernel_folder(modules / "policy.py", str(tmp_path)) == mine
    assert time.time() - mine.stat().st_mtime < 3600  # its use counts


def test_where_no_folder_can_be_written_kernels_are_compiled_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a home numba would make a folder named "~" where the process happens to be.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").touch()
    monkeypatch.setattr(kernel_cache, "_PACKAGE", tmp_path / "package")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "")
    assert Kernel(_double)(2.0) == 4.0
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_where_a_kernel_cannot_be_saved_it_is_compiled_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit.numba.core.caching.IndexDataCacheFile, "save", refuse)
    kernel = Kernel(_double, jit.types.float64(jit.types.float64))
    assert kernel(2.0) == 4.0
    assert str(tmp_path) == jit.numba.config.CACHE_DIR

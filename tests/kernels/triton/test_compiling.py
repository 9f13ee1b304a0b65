"""Compilation ahead of launches: the folder of its cache, errors of some kernels."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton")

import triton

from hybridmoe.kernels.triton import compiling
from hybridmoe.kernels.triton.compiling import choose_cache_folder, compile_launches
from hybridmoe.kernels.triton.launches import Launch


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Parent of folders `own` (Triton's), `user/hybridmoe/triton` and `package`."""
    before = triton.knobs.cache.dir
    monkeypatch.setattr(compiling, "_PACKAGE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    triton.knobs.cache.dir = str(tmp_path / "own")
    yield tmp_path
    triton.knobs.cache.dir = before


def make_unusable(folder: Path) -> None:
    """Put a file where the folder would be: that stops even root."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()


def test_the_cache_is_tritons_own_if_that_can_be_written(folders: Path) -> None:
    assert choose_cache_folder() == folders / "own"
    assert Path(triton.knobs.cache.dir).is_dir()


def test_a_cache_that_cannot_be_written_is_replaced(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unusable(folders / "own")
    assert choose_cache_folder() == folders / "user/hybridmoe/triton"
    triton.knobs.cache.dir = str(folders / "own")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home
    chosen = choose_cache_folder()
    assert chosen == folders / "package/__pycache__/triton"
    assert triton.knobs.cache.dir == str(chosen)


def test_without_any_folder_the_cache_lasts_for_the_process(folders: Path) -> None:
    for name in ("own", "user", "package"):
        make_unusable(folders / name)
    chosen = choose_cache_folder()
    assert chosen.name.startswith("hybridmoe-triton-") and chosen.is_dir()


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_preparations", list)
    monkeypatch.setattr(compiling, "_prepare", lambda kernel: None)


@pytest.mark.usefixtures("unprepared")
def test_an_interrupt_leaves_the_kernels_that_wait() -> None:
    compiled: list[int] = []

    def run(number: int, *, grid: object, warmup: bool) -> SimpleNamespace:
        return SimpleNamespace(_init_handles=lambda: compiled.append(number))

    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def slowly(number: int, **options: Any) -> SimpleNamespace:
        has_begun.wait()
        return run(number, **options)

    has_begun = threading.Event()
    launches = [Launch(SimpleNamespace(run=run), (0,), {})]
    launches += [Launch(SimpleNamespace(run=slowly), (i,), {}) for i in range(1, 20)]
    timer = threading.Timer(0.2, has_begun.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        compile_launches(launches, nullcontext, interrupt, num_threads=1)
    timer.join()
    assert compiled in ([0], [0, 1])


@pytest.mark.usefixtures("unprepared")
def test_one_kernel_that_does_not_compile_leaves_the_others() -> None:
    compiled: list[int] = []

    def run(number: int, *, grid: object, warmup: bool) -> SimpleNamespace:
        assert warmup
        if number == 1:
            raise RuntimeError("too many registers")
        return SimpleNamespace(_init_handles=lambda: compiled.append(number))

    launches = [Launch(SimpleNamespace(run=run), (i,), {}) for i in range(5)]
    progress: list[tuple[int, int]] = []
    ((launch, error),) = compile_launches(launches, nullcontext, lambda *now: progress.append(now))
    assert launch is launches[1] and str(error) == "too many registers"
    assert sorted(compiled) == [0, 2, 3, 4]
    assert progress == [(i, 5) for i in range(6)]

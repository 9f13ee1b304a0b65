"""Compilation of kernels ahead of their first launch, several at once, and the cache they are in.

Threads suffice: Triton holds Python's lock for a quarter of the time, and waits for ptxas and the C
compiler. 22 kernels on an H100 with 16 cores: 9.5 s one after the other, 4.0 s with 4 threads, 2.2
s with 16; 12 processes took 9.5 s, of which 7 s were imports and CUDA.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import triton

try:
    from triton.runtime.cache import triton_key
except ImportError:  # Triton 3.4
    from triton.compiler.compiler import triton_key

from hybridmoe.kernels.triton.launches import Launch
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

__all__ = ["begin_compiling", "choose_cache_folder", "compile_launches"]

_MAX_THREADS = 16
_PACKAGE = Path(__file__).parent.parent.parent


def begin_compiling() -> None:
    """Start what every compilation needs, in the background. Idempotent.

    Triton names cached binaries by a hash of its library of 400 MB, which takes 0.4 s, and
    compiles its access to the driver, 0.4 s if that is not cached.
    """
    if not IS_INTERPRETED:
        _preparations()


def compile_launches(
    launches: Sequence[Launch],
    active: Callable[[], AbstractContextManager[object]],
    progress: Callable[[int, int], None] = lambda done, total: None,
    num_threads: int = _MAX_THREADS,
) -> list[tuple[Launch, Exception]]:
    """Compile launches for a GPU, or load them from Triton's cache, several at once.

    Returns those that failed, with their errors. active: makes the GPU a thread's current one.
    progress: called with the launches compiled so far, and their number.
    """
    failed = []
    for preparation in _preparations():
        preparation.exception()  # waits; an error shows again where a kernel is compiled
    with active():
        for kernel in {id(launch.kernel): launch.kernel for launch in launches}.values():
            _prepare(kernel)

    def compile_one(launch: Launch) -> None:
        with active():
            launch.compile()

    progress(0, len(launches))
    threads = ThreadPoolExecutor(max(1, min(num_threads, len(launches))), "compile")
    try:
        running = {threads.submit(compile_one, launch): launch for launch in launches}
        for done, future in enumerate(as_completed(running), 1):
            error = future.exception()
            if isinstance(error, Exception):
                failed.append((running[future], error))
            progress(done, len(launches))
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C waits for those under way only
    return failed


def choose_cache_folder() -> Path:
    """Set the folder of Triton's cache to one that can be written, and return it.

    Triton's own, `~/.triton/cache` or `TRITON_CACHE_DIR`, if possible; else the user's cache folder
    or the package's `__pycache__`; else a temporary one, for this process only.
    """
    folder = next(filter(_is_writable, _cache_folders()), None)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="hybridmoe-triton-"))
    triton.knobs.cache.dir = str(folder)
    return folder


def _cache_folders() -> Iterator[Path]:
    yield Path(triton.knobs.cache.dir)
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if user.is_absolute():  # "~" stays as it is where there is no home
        yield user / "hybridmoe" / "triton"
    yield _PACKAGE / "__pycache__" / "triton"


def _is_writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # fails on read-only and full disks
        return True
    return False


@cache
def _preparations() -> list[Future[object]]:
    choose_cache_folder()
    threads = ThreadPoolExecutor(2, "begin-compiling")
    started = [threads.submit(triton_key), threads.submit(_load_driver)]
    threads.shutdown(wait=False)
    return started


def _load_driver() -> object:
    return triton.runtime.driver.active.utils


def _prepare(kernel: Any) -> None:
    """Fill what threads would otherwise make twice, losing the binaries of one of them."""
    driver = triton.runtime.driver.active
    kernel.device_caches[driver.get_current_device()]
    kernel.cache_key  # noqa: B018

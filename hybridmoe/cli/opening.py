"""Model that is opened in a thread, while the first message is typed.

Importing torch alone takes most of a second, and reading a large model minutes. The file's header
is read at once: what is wrong with it is an error before the prompt.
"""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import hybridmoe
from hybridmoe.cli.loading import placement_lines
from hybridmoe.cli.progress_bar import ProgressBar, title_of
from hybridmoe.cli.signals import uninterrupted
from hybridmoe.library.last_use import note_use
from hybridmoe.placement.options import LoadOptions

if TYPE_CHECKING:
    from hybridmoe import LLM, Progress

__all__ = ["Opening"]

_SILENT_S = 1.0  # shorter work needs no status


class Opening:
    """Context manager around a conversation; closes the model at its end."""

    def __init__(
        self, path: Path | None, options: LoadOptions, check: Callable[["LLM"], None]
    ) -> None:
        """check: called in the thread with the open model. Errors: as of `load`, by the header."""
        self._path, self._options, self._check = path, options, check
        name, context_tokens = read_header(path, options)
        self.model_line = f"{name} · context {context_tokens} tokens"
        self._executor = ThreadPoolExecutor(1, "hybridmoe-opening")
        self._future: Future[LLM] | None = None
        self._is_unwanted = threading.Event()
        self._bar: ProgressBar | None = None
        self._latest: Progress | None = None
        self._started = 0.0
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_unwanted.set()
        with uninterrupted():
            self._executor.shutdown()
            if self._future is not None and self._future.exception() is None:
                self._future.result().close()

    def begin(self) -> "Future[LLM]":
        """Begin to open the model, once."""
        if self._future is None:
            self._started = time.monotonic()
            self._future = self._executor.submit(self._open)
        return self._future

    def wait(self) -> "LLM":
        """Wait for the model, with a progress bar. Errors: as of `load`, and of `check`."""
        with ProgressBar() as self._bar:
            try:
                llm = self.begin().result()
            finally:
                self._bar = None
        self.print_notes()
        return llm

    @property
    def status(self) -> str:
        """Progress in a few words; "" once the model is open, and during the first second."""
        latest = self._latest
        is_early = time.monotonic() - self._started < _SILENT_S
        if latest is None or is_early or self.begin().done():
            return ""
        return f"{title_of(latest)}: {100 * latest.done // max(1, latest.total)} %"

    @property
    def has_notes(self) -> bool:
        """True if the model is open and something about its placement is to be said."""
        return bool(self._notes)

    def print_notes(self) -> None:
        """Describe the placement on standard error, once."""
        for line in self._notes:
            print(f"hybridmoe: {line}", file=sys.stderr, flush=True)
        self._notes = []

    def _open(self) -> "LLM":
        llm = hybridmoe.load(self._path, self._options, progress=self._on_progress)
        try:
            self._check(llm)
        except BaseException:
            llm.close()
            raise
        if self._path is not None:
            note_use(self._path)
        self._notes = placement_lines(llm)
        return llm

    def _on_progress(self, progress: "Progress") -> None:
        if self._is_unwanted.is_set():
            raise _UnwantedError
        self._latest = progress
        if self._bar is not None:
            self._bar(progress)


class _UnwantedError(Exception):
    """The conversation has ended before the model was open."""


def read_header(path: Path | None, options: LoadOptions) -> tuple[str, int]:
    """Read a model's name, and the context that it will have. Errors: as of `load`."""
    from hybridmoe.demo import demo_path
    from hybridmoe.gguf.reader import GGUFFile
    from hybridmoe.llm.model_config import read_model_config

    with GGUFFile.open(demo_path() if path is None else path) as file:
        config = read_model_config(file, options)
    return config.name, options.engine_config(config).context_tokens

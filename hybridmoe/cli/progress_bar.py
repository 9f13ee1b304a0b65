"""Progress bar on a terminal's standard error, with seconds, also while no progress is heard of."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from hybridmoe.cli.duration import about

if TYPE_CHECKING:
    from hybridmoe import Progress

__all__ = ["ProgressBar", "title_of"]

_BAR_AFTER_S = 0.3  # shorter work needs no bar
_TITLES = {
    "compile": "compiling GPU kernels",
    "load": "loading the model",
    "cluster": "waiting for other hosts",
    "prompt": "reading the prompt",
    "check": "reading all weights",
    "download": "downloading",
    "record": "recording responses",
    "replay": "replaying the trace",
}


def title_of(progress: "Progress") -> str:
    """Title of a phase, for people."""
    return _TITLES.get(progress.phase, progress.phase)


class ProgressBar:
    """Callback of `load` and `chat`: shown once the work has lasted 0.3 s, removed at its end.

    Its own thread shows it and counts the seconds: the first tokens of a prompt may take a minute.
    """

    def __init__(
        self,
        err: TextIO | None = None,
        *,
        tokens_per_s: float = 0.0,
        known_tokens: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """tokens_per_s: rate of earlier prompts, 0 = none. known_tokens: cached ones, perhaps.

        say: gets lines without a terminal, on waiting for other hosts alone.
        """
        self._err = sys.stderr if err is None else err
        self._tokens_per_s, self._known_tokens = tokens_per_s, known_tokens
        self._lock = threading.RLock()
        self._say = say
        self._said: Progress | None = None
        self._timer: threading.Timer | None = None
        self._latest: Progress | None = None
        self._started = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, progress: "Progress") -> None:
        if not self._err.isatty():
            self._say_in_words(progress)
            return
        with self._lock:
            if self._latest is None or progress.phase != self._latest.phase:
                self.close()
                self._begin()
            self._latest = progress
            if progress.done >= progress.total:
                self.close()
            elif self._bar is not None:
                self._bar.update(self._task, completed=progress.done, total=progress.total)
            elif time.monotonic() - self._started > _BAR_AFTER_S:
                self._open()

    def close(self) -> None:
        """Remove the bar, if one is shown."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._latest = None
            bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _say_in_words(self, progress: "Progress") -> None:
        is_news = progress.phase == "cluster" and progress != self._said
        if is_news and self._say is not None and progress.done < progress.total:
            self._say(f"{title_of(progress)}: {progress.done} of {progress.total} are ready")
        self._said = progress

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._timer = threading.Timer(_BAR_AFTER_S, self._open)
        self._timer.daemon = True
        self._timer.start()

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        amounts: list[Any] = [DownloadColumn(), TransferSpeedColumn()]
        with self._lock:
            latest = self._latest
            if latest is None or self._bar is not None:
                return
            if latest.unit != "bytes":
                amounts = [MofNCompleteColumn(), TextColumn(latest.unit)]
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                *amounts,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._err),
                transient=True,
            )
            self._task = self._bar.add_task(
                self._title(latest), completed=latest.done, total=latest.total
            )
            self._bar.start()

    def _title(self, progress: "Progress") -> str:
        title = title_of(progress)
        if progress.phase != "prompt" or not self._tokens_per_s:
            return title
        new = progress.total - max(progress.done, min(self._known_tokens, progress.total - 1))
        return f"{title}, about {about(new / self._tokens_per_s)}"

"""A limit on the memory of child processes, page cache included, through control groups."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["MemoryLimit", "memory_limit"]

_ROOT = Path("/sys/fs/cgroup")


class MemoryLimit:
    """A control group, v1 or v2, of this program's own."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._folder = folder
        limit = folder / "memory.max"
        if not limit.exists():
            limit = folder / "memory.limit_in_bytes"
        limit.write_text(str(num_bytes))
        with suppress(OSError):
            (folder / "memory.swap.max").write_text("0")

    @property
    def peak_bytes(self) -> int | None:
        """The most that has been used; of a control group v1 or a Linux of 2022 or later."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with suppress(OSError, ValueError):
                return int((self._folder / name).read_text())
        return None

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and capture what it prints."""

        def enter() -> None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

        return subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[MemoryLimit | None]:
    """A group with this limit; None where this user may not make one."""
    for parent in (_ROOT / "memory", _ROOT):
        folder = parent / f"hybridmoe-bench-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                yield MemoryLimit(folder, num_bytes)
                return
            finally:
                folder.rmdir()
    yield None

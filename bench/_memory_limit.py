"""Limits on child processes through control groups: memory, page cache included, and disk reads."""

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
        self._folders = [folder]
        self.file = folder / "memory.max"  # of the limit, which may be written to
        if not self.file.exists():
            self.file = folder / "memory.limit_in_bytes"
        self.file.write_text(str(num_bytes))
        with suppress(OSError):
            (folder / "memory.swap.max").write_text("0")

    def limit_reads(self, path: Path, bytes_per_s: int) -> None:
        """Limit the reads of a file's disk. Errors: OSError where the system cannot."""
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        if (self._folder / "io.max").exists():
            (self._folder / "io.max").write_text(f"{number} rbps={bytes_per_s}")
            return
        folder = _ROOT / "blkio" / self._folder.name
        folder.mkdir()
        self._folders.append(folder)
        (folder / "blkio.throttle.read_bps_device").write_text(f"{number} {bytes_per_s}")

    def close(self) -> None:
        """Remove the groups."""
        for folder in self._folders:
            folder.rmdir()

    @property
    def peak_bytes(self) -> int | None:
        """The most that has been used; of a control group v1 or a Linux of 2022 or later."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with suppress(OSError, ValueError):
                return int((self._folder / name).read_text())
        return None

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and capture what it prints."""
        return subprocess.run(command, capture_output=True, text=True, preexec_fn=self.enter)

    def enter(self) -> None:
        """Put the calling process inside."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[MemoryLimit | None]:
    """A group with this limit; None where this user may not make one."""
    for parent in (_ROOT / "memory", _ROOT):
        folder = parent / f"hybridmoe-bench-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                limit = MemoryLimit(folder, num_bytes)
            except OSError:
                folder.rmdir()
                raise
            try:
                yield limit
                return
            finally:
                limit.close()
    yield None

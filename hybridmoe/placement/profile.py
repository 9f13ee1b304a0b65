"""Profile of hot experts of one model, kept for the next start: in a file that the user names, or
beside the model's other state without being asked.

What is kept without being asked must never be in the way: it is ignored if it cannot be read, and
left out if it cannot be written. The file is named by the fingerprint of the model's tensors. It is
replaced whole, so that of two processes the last one's remains.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.gguf.fingerprint import fingerprint
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.state_folder import state_folder

__all__ = ["OFF", "HotExperts", "HotTiers", "KeptProfile", "ProfileRecord", "open_profile"]

OFF = Path("off")
_MOST_FILES = 64  # of models, the last used; some 200 kB each for Kimi K2
_EVERY_S = 600.0


class HotExperts(Protocol):
    """A cache of experts, whose hot ones are worth remembering."""

    @property
    def uses(self) -> NDArray[np.int64]:
        """Accesses by key."""
        ...

    def resident(self) -> NDArray[np.int64]:
        """List the keys that are resident, ascending."""
        ...


class HotTiers:
    """Caches of VRAM and of RAM below it as one."""

    def __init__(self, vram: HotExperts | None, ram: HotExperts) -> None:
        """vram: None = no expert slots. ram: counts all accesses."""
        self._vram, self._ram = vram, ram

    @property
    def uses(self) -> NDArray[np.int64]:
        """Accesses by key."""
        return self._ram.uses

    def resident(self) -> NDArray[np.int64]:
        """List the keys that are resident in either, ascending."""
        in_ram = self._ram.resident()
        return in_ram if self._vram is None else np.union1d(in_ram, self._vram.resident())

    def absent(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the keys that neither has, in their order."""
        return keys[~np.isin(keys, self.resident())]


class KeptProfile:
    """Profile that was found at the start, and the file of the next one."""

    def __init__(self, path: Path, found: HotProfile, *, is_automatic: bool) -> None:
        self.path, self.found, self.is_automatic = path, found, is_automatic

    def record(self, cache: HotExperts) -> "ProfileRecord":
        """Record a run's uses."""
        return ProfileRecord(self, cache)


class ProfileRecord:
    """Profile of a run: written when it is closed, and every ten minutes if kept unasked."""

    def __init__(self, kept: KeptProfile, cache: HotExperts, *, every_s: float = _EVERY_S) -> None:
        self._kept, self._cache = kept, cache
        self._every_s = every_s
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        if kept.is_automatic:
            self._thread = threading.Thread(target=self._work, name="expert profile", daemon=True)
            self._thread.start()

    def save(self) -> None:
        """Write the profile with this run's accesses, if any.

        Errors: ConfigError, unless it is kept unasked.
        """
        uses = self._cache.uses.copy()
        if not uses.any():
            return
        before = self._kept.found
        is_resident = np.zeros(before.uses.shape, np.bool_)
        is_resident.reshape(-1)[self._cache.resident()] = True
        profile = before.plus(uses.reshape(before.uses.shape), is_resident)
        if not self._kept.is_automatic:
            profile.save(self._kept.path)
            return
        with suppress(ConfigError, OSError):
            profile.save(self._kept.path)
            _remove_oldest(self._kept.path.parent.glob("*.json"))

    def close(self) -> None:
        """Save for the last time. Idempotent. Errors: as `save`."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()
        self.save()

    def _work(self) -> None:
        while not self._is_closed.wait(self._every_s):
            self.save()


def open_profile(
    choice: Path | None, file: GGUFFile, num_layers: int, num_experts: int, *, has_slots: bool
) -> KeptProfile | None:
    """Read a model's profile.

    choice: a file, `OFF`, or None = the automatic one if there are VRAM slots (has_slots).
    Errors: ConfigError for a chosen file that is damaged, or of a model of another shape.
    """
    if choice == OFF or (choice is None and not has_slots):
        return None
    if choice is not None:
        return KeptProfile(
            choice, HotProfile.load(choice, num_layers, num_experts), is_automatic=False
        )
    folder = state_folder("experts")
    if folder is None:
        return None
    path = folder / f"{fingerprint(file)[:32]}.json"
    try:
        found = HotProfile.load(path, num_layers, num_experts)
    except ConfigError:
        shape = (num_layers, num_experts)
        found = HotProfile(np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
    return KeptProfile(path, found, is_automatic=True)


def _remove_oldest(paths: Iterable[Path]) -> None:
    """Leave the `_MOST_FILES` files that were written last."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime)[:-_MOST_FILES]:
        path.unlink(missing_ok=True)

"""Profile of hot experts in a small JSON file, from which the next run warms its cache.

`uses` counts accesses by layer and expert, with the weight of earlier runs halved each time;
`resident` lists the experts in memory at the end.
"""

import errno
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.replace_file import replace_file

__all__ = ["HotProfile"]

_FORMAT = "hybridmoe expert profile 1"
_MOST_USES = 1 << 53


class HotProfile(NamedTuple):
    """Uses and residents by layer, counted from the first with experts."""

    uses: NDArray[np.int64]  # (layers, E)
    is_resident: NDArray[np.bool_]  # (layers, E)

    def hot_keys(self) -> NDArray[np.int64]:
        """Return the used keys, most valuable first: residents, then by uses."""
        uses, is_resident = self.uses.reshape(-1), self.is_resident.reshape(-1)
        keys = np.lexsort((-uses, ~is_resident))
        return keys[(uses > 0)[keys]].astype(np.int64)

    def most_used_keys(self) -> NDArray[np.int64]:
        """Return the used keys by uses alone: free slots take experts that nothing has used."""
        uses = self.uses.reshape(-1)
        keys = np.lexsort((~self.is_resident.reshape(-1), -uses))
        return keys[(uses > 0)[keys]].astype(np.int64)

    def of_layers(self, first: int, num_layers: int) -> "HotProfile":
        """Return the rows of some layers."""
        rows = slice(first, first + num_layers)
        return HotProfile(self.uses[rows], self.is_resident[rows])

    def plus(self, uses: NDArray[np.int64], is_resident: NDArray[np.bool_]) -> "HotProfile":
        """Add a run's counts and the experts that it left resident."""
        return HotProfile(self.uses // 2 + uses, is_resident)

    def save(self, path: Path) -> None:
        """Write the file atomically. Errors: ConfigError."""
        content = {
            "format": _FORMAT,
            "uses": self.uses.tolist(),
            "resident": [np.flatnonzero(row).tolist() for row in self.is_resident],
        }
        try:
            with replace_file(path) as file:
                file.write(f"{json.dumps(content)}\n".encode())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    @staticmethod
    def check_writable(path: Path) -> None:
        """Raise ConfigError if `save` could not write the file."""
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path, num_layers: int, num_experts: int) -> "HotProfile":
        """Read the file; without one, return an empty profile.

        Errors: ConfigError for a file that is damaged or of a model of another shape.
        """
        shape = (num_layers, num_experts)
        uses, is_resident = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(uses, is_resident)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise ConfigError(f"{path}: expected an expert profile in JSON") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ConfigError(f"{path}: expected an expert profile ({_FORMAT!r})")
        rows, residents = content.get("uses"), content.get("resident")
        if not _is_table(rows, num_layers, _MOST_USES) or any(len(r) != num_experts for r in rows):
            raise ConfigError(
                f"{path}: expected counts of {num_layers} layers of {num_experts} experts:"
                " it is damaged, or another model's"
            )
        if not _is_table(residents, num_layers, num_experts):
            raise ConfigError(f"{path}: resident: expected lists of experts: it is damaged")
        uses[:] = rows
        for row, experts in zip(is_resident, residents, strict=True):
            row[experts] = True
        return cls(uses, is_resident)


def _is_table(rows: Any, num_rows: int, limit: int) -> TypeGuard[list[list[int]]]:
    """Check for a list of `num_rows` lists of whole numbers below `limit`."""
    return (
        isinstance(rows, list)
        and len(rows) == num_rows
        and all(isinstance(row, list) for row in rows)
        and all(type(n) is int and 0 <= n < limit for row in rows for n in row)
    )

"""Times at which models were used, kept in the state folder for `list` and for the name `last`."""

import json
import time
from contextlib import suppress
from pathlib import Path

from hybridmoe.replace_file import replace_file
from hybridmoe.state_folder import state_folder

__all__ = ["last_used", "note_use", "times_of_use"]

_FILE = "models.json"
_MAX_ENTRIES = 200


def note_use(path: Path) -> None:
    """Remember that a model is used now. What cannot be written is not remembered."""
    folder = state_folder()
    if folder is None:
        return
    times = {**times_of_use(), path.absolute(): time.time()}
    newest = sorted(times.items(), key=lambda entry: entry[1])[-_MAX_ENTRIES:]
    with suppress(OSError), replace_file(folder / _FILE) as file:
        file.write(json.dumps({str(path): used for path, used in newest}, indent=1).encode())


def times_of_use() -> dict[Path, float]:
    """Read when models were last used, in seconds since 1970; none if that is damaged."""
    folder = state_folder()
    with suppress(OSError, ValueError):
        found = json.loads((folder / _FILE).read_bytes()) if folder is not None else {}
        if isinstance(found, dict):
            return {
                Path(path): float(used)
                for path, used in found.items()
                if isinstance(used, int | float)
            }
    return {}


def last_used() -> Path | None:
    """Return the model that was used last, of those that still exist."""
    times = times_of_use()
    return next(
        (path for path in sorted(times, key=times.__getitem__)[::-1] if path.exists()), None
    )

"""Folder of what the program keeps between runs: history, measured rates, profiles of experts."""

import os
from pathlib import Path

__all__ = ["state_folder"]


def state_folder(name: str = "") -> Path | None:
    """Make `$XDG_STATE_HOME/hybridmoe`, or a folder in it; None if that cannot be made."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = state / "hybridmoe" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor an entry in passwd
        return None
    return folder

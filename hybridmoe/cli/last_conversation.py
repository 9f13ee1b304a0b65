"""The last conversation, for `chat --continue`: messages after each response, KV cache at the end.

Both are files of the state folder, which only their owner can read.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hybridmoe.cli.session import Session
from hybridmoe.errors import ConfigError
from hybridmoe.state_folder import state_folder

__all__ = ["LastConversation", "load_last"]


def load_last() -> Session:
    """Read the last conversation. Errors: ConfigError."""
    path = _path()
    if path is None or not path.exists():
        raise ConfigError("--continue: no conversation is kept yet")
    try:
        return Session.load(path)
    except OSError as error:
        raise ConfigError(f"--continue: {path}: {error.strerror or error}") from None


def _path() -> Path | None:
    folder = state_folder()
    return None if folder is None else folder / "last_conversation.json"


class LastConversation:
    """Files of the last conversation. Without a folder that can be written, nothing is kept."""

    def __init__(self, *, is_continued: bool) -> None:
        """is_continued: this chat goes on with it; else its KV cache is no longer of use."""
        self._path = _path()
        self._is_kv_stale = not is_continued
        self._has_grown = False
        self.failure = ""  # why the latest messages are not kept

    @property
    def _kv_path(self) -> Path | None:
        return self._path and self._path.with_name(f"{self._path.name}.kv")

    def load_kv(self, load: Callable[[Path], int]) -> int:
        """Restore the KV cache. Returns its tokens; 0 if none fits."""
        if self._kv_path is not None and self._kv_path.exists():
            with suppress(ConfigError, OSError):  # of another model, or damaged
                return load(self._kv_path)
        return 0

    def save(self, session: Session) -> None:
        """Replace the conversation; a full disk is no reason to end one."""
        if self._path is not None and self._kv_path is not None and session.messages:
            self._has_grown = True
            try:
                if self._is_kv_stale:
                    self._kv_path.unlink(missing_ok=True)
                    self._is_kv_stale = False
                session.save(self._path)
                self.failure = ""
            except OSError as error:
                self.failure = error.strerror or str(error)

    def save_kv(self, save: Callable[[Path], int]) -> int:
        """Write the KV cache if the conversation has grown. Returns its tokens, 0 = none."""
        if self._kv_path is not None and self._has_grown:
            with suppress(OSError):
                return save(self._kv_path)
        return 0

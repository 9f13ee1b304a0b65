"""API keys from a file, which hides them from the process list."""

from pathlib import Path

from hybridmoe.errors import ConfigError

__all__ = ["read_api_keys"]


def read_api_keys(path: Path, option: str) -> tuple[str, ...]:
    """Read the keys of a file, one a line. option: as the message names it. Errors: ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "not a text file"
        raise ConfigError(f"{option} {path}: {reason}") from None
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no API key; expected one a line")
    return keys

"""Conversation file of `/save` and `/load`: messages and settings.

The file is JSON: {"format": "hybridmoe-conversation", "version": 1, "model", "file", "system",
"params", "think", "think_budget", "messages"}; messages are OpenAI's. A file is read whole and
checked before anything changes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridmoe.cli.sampling_options import SAMPLING_NAMES
from hybridmoe.errors import ConfigError
from hybridmoe.replace_file import replace_file
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["Session"]

_FORMAT, _VERSION = "hybridmoe-conversation", 1
_MAX_FILE_BYTES = 1 << 26
_ROLES = ("user", "assistant", "tool", "system")


@dataclass(slots=True)
class Session:
    """Messages so far; the system message apart, so that it can be changed."""

    model: str = ""
    system: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)
    file: str | None = None  # of the model; None = the embedded one

    def prompt(self) -> list[dict[str, Any]]:
        """All messages for the model, the system message first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages

    def drop_last_turn(self) -> str | None:
        """Remove the last user message and all after it; return its text."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                text: str = self.messages[at]["content"]
                del self.messages[at:]
                return text
        return None

    def save(self, path: Path) -> None:
        """Write the file. On OSError, an older file stays as it was."""
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "file": self.file,
            "system": self.system,
            "params": self.params,
            "think": self.thinking.mode,
            "think_budget": self.thinking.budget_tokens,
            "messages": self.messages,
        }
        text = json.dumps(data, ensure_ascii=False, indent=1)
        with replace_file(path) as file:
            file.write(f"{text}\n".encode("utf-8", "replace"))

    @classmethod
    def load(cls, path: Path) -> "Session":
        """Read a file that `save` wrote. Errors: ConfigError, one line; OSError."""
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)  # a device has no size
        if len(text) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path.name}: larger than {_MAX_FILE_BYTES >> 20} MiB")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path.name} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ConfigError(f"{path.name}: expected a conversation that /save wrote")
        if data.get("version") != _VERSION:
            raise ConfigError(
                f"{path.name}: version {data.get('version')!r:.20}; this program reads {_VERSION}"
            )
        model, system, params = data.get("model", ""), data.get("system"), data.get("params")
        messages = data.get("messages")
        file_name = data.get("file")
        if not isinstance(model, str) or not isinstance(system, str | None):
            raise ConfigError(f"{path.name}: model and system: expected strings")
        if not isinstance(file_name, str | None):
            raise ConfigError(f"{path.name}: file: expected a string")
        if not isinstance(params, dict) or not params.keys() <= set(SAMPLING_NAMES):
            raise ConfigError(f"{path.name}: params: expected only {', '.join(SAMPLING_NAMES)}")
        if not isinstance(messages, list):
            raise ConfigError(f"{path.name}: messages: expected a list")
        for i, message in enumerate(messages):
            _check_message(message, f"{path.name}: messages[{i}]")
        return cls(model, system, params, messages, _thinking(data, path.name), file_name)


def _thinking(data: Mapping[str, Any], name: str) -> ThinkingOptions:
    """Read the options on thinking, which older files lack."""
    try:
        return ThinkingOptions(mode=data.get("think"), budget_tokens=data.get("think_budget"))
    except (ConfigError, TypeError):
        raise ConfigError(f"{name}: think and think_budget: expected a mode and tokens") from None


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise ConfigError(f"{where}.role: expected one of {', '.join(_ROLES)}")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise ConfigError(f"{where}.content: expected a string")

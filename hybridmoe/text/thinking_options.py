"""Wishes of a caller on thinking and on the prompt's end, before any template is asked.

text/template_switches.py finds which of them a chat template knows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridmoe.errors import ConfigError

__all__ = ["LEVELS", "PromptOptions", "ThinkingArgument", "ThinkingOptions", "check_variables"]

LEVELS = ("minimal", "low", "medium", "high", "xhigh", "max")  # least thoughts first
_MAX_VARIABLES, _MAX_NAME, _MAX_TEXT, _MAX_INT = 32, 64, 4096, 2**53
_MAX_BUDGET = 2**31 - 1
_ANTHROPIC_TYPES = {"enabled": "on", "adaptive": "on", "disabled": "off"}
# What the conversation, the tokenizer and the sandbox give.
_RESERVED = frozenset((
    "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "namespace", "dict", "range", "raise_exception",
    "strftime_now",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingOptions:
    """Request for thinking: on or off, level, and budget."""

    mode: str | None = None  # "on", "off", one of LEVELS; None: as the template does by default
    budget_tokens: int | None = None  # tokens of reasoning, then it is closed; None: no limit
    is_wish: bool = False  # what programs send unasked: without effect on a model that cannot
    name: str = "thinking"  # of the field or option that set the mode, for errors

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in ("on", "off", *LEVELS):
            expected = f"on, off, {', '.join(LEVELS)}"
            raise ConfigError(f"{self.name} is {self.mode!r:.60}; expected {expected}")
        budget = self.budget_tokens
        if budget is not None and not (type(budget) is int and 0 <= budget <= _MAX_BUDGET):
            raise ConfigError(f"the thinking budget is {budget!r:.60}; expected tokens, 0 or more")

    @classmethod
    def of_argument(cls, given: "ThinkingArgument") -> "ThinkingOptions":
        """Read an argument `thinking`. Raises ConfigError for one that is unknown."""
        if given is None or isinstance(given, cls):
            return given or cls()
        if isinstance(given, bool):
            return cls(mode="on" if given else "off")
        if isinstance(given, str):
            return cls(mode="off" if given == "none" else given)
        if not isinstance(given, Mapping) or given.get("type") not in _ANTHROPIC_TYPES:
            expected = "True, False, a level, or {'type': 'enabled', 'budget_tokens': N}"
            raise ConfigError(f"thinking is {given!r:.60}; expected {expected}")
        mode = _ANTHROPIC_TYPES[given["type"]]
        return cls(mode=mode, budget_tokens=given.get("budget_tokens"))


# Whether to think: True, False, a level, or Anthropic's {"type", "budget_tokens"}; None: default.
ThinkingArgument = bool | str | Mapping[str, Any] | ThinkingOptions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """Options of encoding a conversation to a prompt. Raises ConfigError for unusable variables."""

    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the template, by name
    # The assistant's last message is continued: None = if it has text and no tool calls.
    continues_final: bool | None = False

    def __post_init__(self) -> None:
        check_variables(self.variables)


def check_variables(variables: Mapping[str, Any], where: str = "chat_template_kwargs") -> None:
    """Check variables for a template: JSON scalars, bounded. Raises ConfigError by name."""
    if len(variables) > _MAX_VARIABLES:
        raise ConfigError(f"{where} has {len(variables)} entries; at most {_MAX_VARIABLES}")
    for name, value in variables.items():
        if not isinstance(name, str) or not name.isidentifier() or len(name) > _MAX_NAME:
            raise ConfigError(f"{where}: {name!r:.60} is not the name of a variable")
        if name in _RESERVED or name.endswith("_token"):
            raise ConfigError(f"{where}: {name!r} is set by the request itself")
        if isinstance(value, str):
            is_usable = len(value) <= _MAX_TEXT
        elif isinstance(value, float):
            is_usable = math.isfinite(value)
        else:
            is_usable = value is None or (isinstance(value, int) and abs(value) <= _MAX_INT)
        if not is_usable:
            raise ConfigError(
                f"{where}.{name} is {value!r:.60}; expected a number, true, false, null, or text of"
                f" at most {_MAX_TEXT} characters"
            )

"""Formats that an output can be constrained to: JSON schema, regex, grammar, tool calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_build import as_lark, one_line, prefixed_errors
from hybridmoe.text.grammar_limits import CHEAP_CHARS, MAX_CHARS
from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.schema_relaxing import relax_schema

__all__ = ["OutputFormat", "ToolCallFormat", "check_chars", "to_json"]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A text format. Its constructors raise ConfigError, one line, for malformed input."""

    name: str  # for errors
    grammar: Mapping[str, Any]  # llguidance's; or {"text": a large grammar, not converted yet}
    relaxed: tuple[str, ...] = ()  # paths in the schema of what is not supported

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> "OutputFormat":
        """JSON that is valid against the schema, but for keywords that are not supported."""
        schema, relaxed = relax_schema(schema)
        return cls("json_schema", {"json_schema": set_json_whitespace(schema)}, tuple(relaxed))

    @classmethod
    def json_object(cls) -> "OutputFormat":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "OutputFormat":
        """Text that matches as a whole; syntax of Rust's regex crate."""
        check_chars("regex", len(pattern))
        (entry,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
        return cls("regex", {"lark_grammar": entry["lark_grammar"]})

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "OutputFormat":
        """One of several texts."""
        check_chars("choice", sum(map(len, texts)))
        alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        return cls("choice", {"lark_grammar": f"start: {alternatives}"})

    @classmethod
    def lark_or_gbnf(cls, text: str) -> "OutputFormat":
        """A Lark or GBNF grammar, told apart by its `start` or `root` rule."""
        check_chars("grammar", len(text))
        if len(text) > CHEAP_CHARS:
            return cls("grammar", {"text": text})
        with prefixed_errors("grammar"):
            return cls("grammar", {"lark_grammar": as_lark(text)})


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """Calls of declared tools, with arguments that are valid against their schemas."""

    tools: Sequence[Mapping[str, Any]]  # OpenAI's function declarations
    choice: str  # "required", "auto", or the name of the one tool to call
    first_index: int = 0  # number of earlier calls in the conversation
    is_parallel: bool = True

    @property
    def is_single(self) -> bool:
        """True if one tool is to be called, once."""
        return self.choice not in ("auto", "required")

    @property
    def functions(self) -> list[Mapping[str, Any]]:
        """Declarations of the tools that may be called. Raises ConfigError without any."""
        declared = [tool["function"] for tool in self.tools]
        out = [f for f in declared if not self.is_single or f["name"] == self.choice]
        if not out:
            raise ConfigError(f"tool_choice {self.choice!r:.60}: no such tool is declared")
        return out

    @property
    def is_auto(self) -> bool:
        """True if calls are optional. Arguments of tools without `strict` are then any object."""
        return self.choice == "auto"


def to_json(name: str, value: Any) -> str:
    """Serialise a part of a grammar. Raises ConfigError, prefixed by `name`."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: {one_line(str(error))}") from None


def check_chars(name: str, num_chars: int) -> None:
    """Raise ConfigError for a grammar that is too long."""
    if num_chars > MAX_CHARS:
        raise ConfigError(f"{name}: more than {MAX_CHARS} characters")

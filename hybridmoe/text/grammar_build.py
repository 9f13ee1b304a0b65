"""A grammar through llguidance: text to parts, parts to a matcher, and its errors in one line.

Used by the process that tries grammars, which must start quickly: nothing heavy is imported.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from hybridmoe.errors import ConfigError
from hybridmoe.text.json_whitespace import set_lark_whitespace

__all__ = ["as_lark", "as_parts", "build", "check_matcher", "one_line"]

# llguidance's own bounds of a step hold; a lexer's states, 1 to 2 KB each, are kept while it lives.
_LIMITS = LLParserLimits(max_lexer_states=100_000, verbose_errors=False)
# The compiler's insides, and lines of grammars, which the client may not have written.
_DETAILS = re.compile(r"<(?:state|backtrace|non-verbose/)>.*|\n\s*\d+ \|.*", re.DOTALL)


def as_lark(text: str) -> str:
    """Convert a Lark or GBNF grammar to Lark. Time grows with the square of GBNF's rules."""
    try:
        return set_lark_whitespace(any_to_lark(text))
    except RecursionError:
        raise ConfigError("nested too deep") from None
    except Exception as error:  # whatever its parser raises
        raise ConfigError(one_line(str(error))) from None


def as_parts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the parts that are still as they were sent (`text`) to Lark."""
    return [
        {"name": part["name"], "lark_grammar": as_lark(part["text"])} if "text" in part
        else dict(part)
        for part in parts
    ]  # fmt: skip


def build(vocabulary: LLTokenizer, parts: Sequence[Mapping[str, Any]]) -> LLMatcher:
    """Compile a matcher, which recurses deeply. Errors: ConfigError."""
    grammar = json.dumps({"grammars": parts})
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS)
    check_matcher(matcher)
    return matcher


def check_matcher(matcher: LLMatcher) -> None:
    """Raise ConfigError for what the matcher has met."""
    if matcher.is_error():
        message = one_line(matcher.get_error())
        raise ConfigError("no text fits it" if message.startswith("NoExtension") else message)


def one_line(message: str) -> str:
    """Shorten an error of llguidance's to a line without its insides."""
    return " ".join(_DETAILS.sub("", message).split())[:300]

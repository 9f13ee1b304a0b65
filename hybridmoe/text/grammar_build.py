"""Builds llguidance matchers from grammars, with errors in one line.

Also used by the process that tries grammars, which must start quickly: imports nothing heavy.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from hybridmoe.errors import ConfigError
from hybridmoe.text.json_whitespace import set_lark_whitespace

__all__ = ["as_lark", "as_parts", "build", "check_matcher", "one_line", "prefixed_errors"]

# The limits of a step are llguidance's own. Lexer states, 1 to 2 KB each, live with the matcher.
_LIMITS = LLParserLimits(max_lexer_states=100_000, verbose_errors=False)
# Internals of the compiler, and lines of grammars that the client may not have written.
_DETAILS = re.compile(r"<(?:state|backtrace|non-verbose/)>.*|\n\s*\d+ \|.*", re.DOTALL)


def as_lark(text: str) -> str:
    """Convert a Lark or GBNF grammar to Lark. Quadratic in the number of GBNF rules."""
    try:
        return set_lark_whitespace(any_to_lark(text))
    except RecursionError:
        raise ConfigError("nested too deep") from None
    except Exception as error:  # the parser can raise anything
        raise ConfigError(one_line(str(error))) from None


def as_parts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the parts that are not converted yet (`text`) to Lark."""
    return [
        {"name": part["name"], "lark_grammar": as_lark(part["text"])} if "text" in part
        else dict(part)
        for part in parts
    ]  # fmt: skip


def build(vocabulary: LLTokenizer, parts: Sequence[Mapping[str, Any]]) -> LLMatcher:
    """Compile a matcher. Recurses deeply. Raises ConfigError."""
    grammar = json.dumps({"grammars": parts})
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS)
    check_matcher(matcher)
    return matcher


def check_matcher(matcher: LLMatcher) -> None:
    """Raise ConfigError if the matcher has failed."""
    if matcher.is_error():
        message = one_line(matcher.get_error())
        raise ConfigError("no text fits it" if message.startswith("NoExtension") else message)


def one_line(message: str) -> str:
    """Shorten an error of llguidance to one line without its internals."""
    return " ".join(_DETAILS.sub("", message).split())[:300]


@contextlib.contextmanager
def prefixed_errors(name: str) -> Iterator[None]:
    """Prefix a ConfigError by the constraint's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None

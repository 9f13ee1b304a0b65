"""Constraints on what a model writes: JSON schemas, regular expressions, grammars, tool calls.

Compiled by llguidance over the model's own vocabulary into objects with the engine's `Constraint`
protocol (hybridmoe/engine/constraint.py): which ids may come next, token by token. Text that is
free in a grammar never matches special tokens; a grammar names those by id, as `<[163595]>`.
Sources: Lark as in llguidance's docs/syntax.md; GBNF as in llama.cpp's grammars/README.md; tool
calls: Moonshot's tool_call_guidance.md.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["GrammarCompiler", "MatcherConstraint"]

# Between JSON's parts, so that no model pads for ever; enough for deep indentation.
_JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"[ \n\t]{0,32}"}
_MAX_CALLS = 16  # of one answer
_MAX_GRAMMAR_CHARS = 1 << 20
_TOOL_MARKS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)


class MatcherConstraint:
    """One sequence's state in a compiled grammar. Raises ConfigError where a limit is met."""

    def __init__(self, matcher: LLMatcher, num_tokens: int) -> None:
        self._matcher = matcher
        self._num_words = -(-num_tokens // 32)

    def mask(self) -> NDArray[np.uint32]:
        """(ceil(V / 32),): bit i % 32 of word i / 32 says whether id i may come next."""
        words = np.zeros(self._num_words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        return words

    def accept(self, token_id: int) -> None:
        """Go on behind a token."""
        self._matcher.consume_token(token_id)
        self._check()

    def is_done(self) -> bool:
        """Whether only an end token may follow."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> "MatcherConstraint":
        """The same state for another sequence."""
        return MatcherConstraint(self._matcher.deep_copy(), self._num_words * 32)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"grammar: {_line(self._matcher.get_error())}")


class GrammarCompiler:
    """Makes constraints for one tokenizer, whose vocabulary is prepared at the first use.

    Every method returns a fresh constraint and raises ConfigError, in one line, for what is
    malformed or unsupported.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def json_schema(self, schema: Mapping[str, Any]) -> MatcherConstraint:
        """JSON that is valid against the schema."""
        return self._compile("json_schema", _json_grammar(schema, "json_schema"))

    def json_object(self) -> MatcherConstraint:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> MatcherConstraint:
        """Text that matches as a whole; the syntax is that of Rust's regex crate."""
        return self._compile("regex", LLMatcher.grammar_from_regex(pattern), pattern)

    def grammar(self, text: str) -> MatcherConstraint:
        """A Lark or GBNF grammar, told apart by its `start` or `root` rule."""
        try:
            lark = any_to_lark(text)
        except Exception as error:  # whatever its parser raises
            raise ConfigError(f"grammar: {_line(str(error))}") from None
        return self._compile("grammar", LLMatcher.grammar_from_lark(lark), text)

    def tool_calls(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: str,
        *,
        first_index: int = 0,
        is_parallel: bool = True,
    ) -> MatcherConstraint:
        """Kimi K2's calls of declared tools, with arguments valid against their schemas.

        tools: OpenAI's function declarations. choice: "required", "auto" (text, calls behind it,
        or both; arguments of tools without `strict` are any object), or the name of the one tool
        to call. first_index: the conversation's number of calls so far.
        """
        marks = {name: self._tokenizer.special_id(name) for name in _TOOL_MARKS}
        absent = next((name for name, token_id in marks.items() if token_id is None), None)
        if absent is not None:
            raise ConfigError(f"tool calls cannot be constrained: the vocabulary has no {absent}")
        functions = [dict(tool["function"]) for tool in tools]
        is_auto = choice == "auto"
        if choice not in ("auto", "required"):
            functions = [f for f in functions if f["name"] == choice]
        if not functions:
            raise ConfigError(f"tool_choice {choice!r:.60}: no such tool is declared")
        num_calls = _MAX_CALLS if is_parallel and choice in ("auto", "required") else 1
        begin, end, call, arguments, call_end = (f"<[{marks[name]}]>" for name in _TOOL_MARKS)
        rules = [
            f"section: {begin} calls_0 {end}",
            "start: section" if not is_auto else "start: TEXT | TEXT section | section",
            r"TEXT: /(.|\n)+/",
        ]
        for i, function in enumerate(functions):
            is_free = is_auto and not function.get("strict")
            schema = {"type": "object"} if is_free else function.get("parameters")
            schema = {"type": "object", **(schema or {}), "x-guidance": _JSON_OPTIONS}
            rules.append(f"arguments_{i}: %json {json.dumps(schema)}")
        for n in range(num_calls):
            texts = [json.dumps(f"functions.{f['name']}:{first_index + n}") for f in functions]
            named = [f"{text} {arguments} arguments_{i}" for i, text in enumerate(texts)]
            more = f" calls_{n + 1}?" if n + 1 < num_calls else ""
            rules.append(f"calls_{n}: {call} ({' | '.join(named)}) {call_end}{more}")
        return self._compile("tools", LLMatcher.grammar_from_lark("\n".join(rules)))

    def _compile(self, what: str, grammar: str, source: str = "") -> MatcherConstraint:
        if len(source or grammar) > _MAX_GRAMMAR_CHARS:
            raise ConfigError(f"{what}: more than {_MAX_GRAMMAR_CHARS} characters")
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigError(f"{what}: {_line(matcher.get_error())}")
        return MatcherConstraint(matcher, self._tokenizer.num_tokens)

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        wrapped = TokenizerWrapper(_Vocabulary(self._tokenizer))
        ends = sorted(self._tokenizer.eos_ids)
        return LLTokenizer(wrapped, n_vocab=self._tokenizer.num_tokens, eos_token=ends)


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
        self.special_token_ids = [i for i in range(tokenizer.num_tokens) if tokenizer.is_special(i)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_untrusted(text)


def _json_grammar(schema: Mapping[str, Any], what: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(dict(schema), overrides=_JSON_OPTIONS)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {_line(str(error))}") from None


def _line(message: str) -> str:
    return " ".join(message.split())[:300]

"""Constraints on what a model writes: JSON schemas, regular expressions, grammars, tool calls,
and all of these behind thoughts.

Compiled by llguidance over the model's own vocabulary into objects with the engine's `Constraint`
protocol (hybridmoe/engine/constraint.py): which ids may come next, token by token. Text that is
free in a grammar never matches special tokens; a grammar names those by id, as `<[163595]>`.
Sources: Lark as in llguidance's docs/syntax.md; GBNF as in llama.cpp's grammars/README.md; tool
calls: Moonshot's tool_call_guidance.md.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.text.closing import Closer
from hybridmoe.text.json_style import styled, styled_lark
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_calls import CALL_END, SECTION_END

__all__ = ["Calls", "Form", "GrammarCompiler", "MatcherConstraint", "Thinking"]

Thinking = Literal["none", "may", "open"]

_MAX_CALLS = 16  # of one answer
_MAX_GRAMMAR_CHARS = 1 << 20
_TOOL_MARKS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_THINKING_MARKS = ("<think>", "</think>")


class MatcherConstraint:
    """One sequence's state in a compiled grammar. Raises ConfigError where a limit is met."""

    def __init__(
        self, matcher: LLMatcher, num_tokens: int, closer: Closer, *, is_json: bool
    ) -> None:
        """is_json: what is not special tokens and thoughts is JSON."""
        self._matcher = matcher
        self._closer = closer
        self._is_json = is_json
        self._words = np.zeros(-(-num_tokens // 32), np.uint32)
        self._buffer = self._words.ctypes.data, self._words.nbytes

    def mask(self) -> NDArray[np.uint32]:
        """(ceil(V / 32),): bit i % 32 of word i / 32 says whether id i may come next.

        It is overwritten by the next call.
        """
        self._matcher.unsafe_compute_mask_ptr(*self._buffer)
        self._check()
        return self._words

    def accept(self, token_id: int) -> None:
        """Go on behind a token."""
        if not self._matcher.consume_token(token_id):
            self._check()

    def is_done(self) -> bool:
        """Whether only an end token may follow."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> "MatcherConstraint":
        """The same state for another sequence."""
        return MatcherConstraint(
            self._matcher.deep_copy(), self._words.size * 32, self._closer, is_json=self._is_json
        )

    def closing(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """What closes the part that is open, where the mask allows no end (text/closing.py)."""
        return self._closer.find(self._words, is_json=self._is_json)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"grammar: {_line(self._matcher.get_error())}")


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must be. Makers raise ConfigError, in one line, for what is malformed."""

    what: str  # in errors
    entry: Mapping[str, Any]  # as llguidance takes it

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> "Form":
        """JSON that is valid against the schema."""
        return cls("json_schema", {"json_schema": styled(schema)})

    @classmethod
    def json_object(cls) -> "Form":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Form":
        """Text that matches as a whole; the syntax is that of Rust's regex crate."""
        (entry,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
        return cls("regex", {"lark_grammar": entry["lark_grammar"]})

    @classmethod
    def grammar(cls, text: str) -> "Form":
        """A Lark or GBNF grammar, told apart by its `start` or `root` rule."""
        try:
            return cls("grammar", {"lark_grammar": styled_lark(any_to_lark(text))})
        except Exception as error:  # whatever its parser raises
            raise ConfigError(f"grammar: {_line(str(error))}") from None


@dataclass(frozen=True, slots=True)
class Calls:
    """Kimi K2's calls of declared tools, with arguments valid against their schemas."""

    tools: Sequence[Mapping[str, Any]]  # OpenAI's function declarations
    choice: str  # "required", "auto", or the name of the one tool to call
    first_index: int = 0  # the conversation's number of calls so far
    is_parallel: bool = True

    @property
    def is_auto(self) -> bool:
        """Whether there may be none; arguments of tools without `strict` are any object then."""
        return self.choice == "auto"


class GrammarCompiler:
    """Makes constraints for one tokenizer, whose vocabulary is prepared at the first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, form: Form) -> MatcherConstraint:
        """A text of this form, and nothing else. Raises ConfigError for what is not supported."""
        return self._compile(form.what, {"name": form.what, **form.entry})

    def answer(
        self, form: Form | None, calls: Calls | None, thinking: Thinking = "none"
    ) -> MatcherConstraint:
        """A text, tool calls, or either (at least one is given), perhaps behind thoughts.

        form: None = any text, before the calls too, where these are optional. thinking: "may" =
        `<think>…</think>` may come first; "open" = the prompt has begun it. Errors: as `text`.
        """
        rules = [r"TEXT: /(.|\n)+/"]
        bodies: list[str] = []
        if calls is not None:
            rules += self._call_rules(calls)
            bodies.append("TEXT? section?" if calls.is_auto and not form else "section")
        if form is not None and (calls is None or calls.is_auto):
            bodies.append("@form")
        start = f"({' | '.join(bodies)})"
        if thinking != "none":
            begin, end = self._marks("thoughts", _THINKING_MARKS)
            start = f"{f'({begin} TEXT? {end})?' if thinking == 'may' else f'TEXT? {end}'} {start}"
        lark = "\n".join([f"start: {start}", *rules])
        parts = [{"name": "answer", "lark_grammar": lark}]
        if "@form" in bodies and form is not None:
            parts.append({"name": "form", **form.entry})
        what = [form.what if form else "", "tools" if calls else ""]
        return self._compile(" and ".join(filter(None, what)), *parts)

    def _call_rules(self, calls: Calls) -> list[str]:
        section_begin, section_end, begin, arguments, end = self._marks("tool calls", _TOOL_MARKS)
        functions = [dict(tool["function"]) for tool in calls.tools]
        is_one = calls.choice not in ("auto", "required")
        if is_one:
            functions = [f for f in functions if f["name"] == calls.choice]
        if not functions:
            raise ConfigError(f"tool_choice {calls.choice!r:.60}: no such tool is declared")
        num_calls = _MAX_CALLS if calls.is_parallel and not is_one else 1
        rules = [f"section: {section_begin} calls_0 {section_end}"]
        for i, function in enumerate(functions):
            is_free = calls.is_auto and not function.get("strict")
            schema = {"type": "object"} if is_free else function.get("parameters")
            schema = styled({"type": "object", **(schema or {})})
            rules.append(f"arguments_{i}: %json {json.dumps(schema)}")
        for n in range(num_calls):
            texts = [
                json.dumps(f"functions.{f['name']}:{calls.first_index + n}") for f in functions
            ]
            named = [f"{text} {arguments} arguments_{i}" for i, text in enumerate(texts)]
            more = f" calls_{n + 1}?" if n + 1 < num_calls else ""
            rules.append(f"calls_{n}: {begin} ({' | '.join(named)}) {end}{more}")
        return rules

    def _marks(self, what: str, names: Sequence[str]) -> list[str]:
        """Special tokens as a grammar names them."""
        out = []
        for name in names:
            token_id = self._tokenizer.special_id(name)
            if token_id is None:
                raise ConfigError(f"{what} cannot be constrained: the vocabulary has no {name}")
            out.append(f"<[{token_id}]>")
        return out

    def _compile(self, what: str, *parts: Mapping[str, Any]) -> MatcherConstraint:
        try:
            grammar = json.dumps({"grammars": parts})
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{what}: {_line(str(error))}") from None
        if len(grammar) > _MAX_GRAMMAR_CHARS:
            raise ConfigError(f"{what}: more than {_MAX_GRAMMAR_CHARS} characters")
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigError(f"{what}: {_line(matcher.get_error())}")
        is_json = all("json_schema" in part for part in parts if part["name"] != "answer")
        return MatcherConstraint(matcher, self._tokenizer.num_tokens, self._closer, is_json=is_json)

    @functools.cached_property
    def _closer(self) -> Closer:
        tokens = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.num_tokens)]
        marks = map(self._tokenizer.special_id, (CALL_END, *SECTION_END))
        ends = {*self._tokenizer.eos_ids, *(mark for mark in marks if mark is not None)}
        return Closer(tokens, ends, self._tokenizer.special_id("</think>"))

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
        self.special_token_ids = list(filter(tokenizer.is_special, range(tokenizer.num_tokens)))

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_untrusted(text)


def _line(message: str) -> str:
    return " ".join(message.split())[:300]

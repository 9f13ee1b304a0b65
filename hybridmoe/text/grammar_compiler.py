"""Constraints on what a model writes: JSON schemas, regular expressions, grammars, tool calls,
and all of these behind thoughts.

Compiled by llguidance over the model's own vocabulary into objects with the engine's `Constraint`
protocol (hybridmoe/engine/constraint.py): which ids may come next, token by token. Text that is
free in a grammar never matches special tokens; a grammar names those by id, as `<[163595]>`.
Large grammars are tried in another process first (hybridmoe/text/grammar_process.py), and each
one's first mask is computed here, so that what cannot be kept is refused before a request begins.
Sources: Lark as in llguidance's docs/syntax.md; GBNF as in llama.cpp's grammars/README.md; tool
calls: Moonshot's tool_call_guidance.md.
"""

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.text.closing_tokens import ClosingTokens
from hybridmoe.text.grammar_build import as_lark, build, check_matcher, one_line
from hybridmoe.text.grammar_limits import CHEAP_CHARS, MAX_CHARS, on_deep_stack
from hybridmoe.text.grammar_process import GrammarProcess
from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.lazy_tool_calls import LazyToolCalls
from hybridmoe.text.thinking import Thinking
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_names import CALL_BEGIN, CALL_END, SECTION_BEGIN, SECTION_END

__all__ = ["GrammarCompiler", "MatcherConstraint", "OutputFormat", "Thinking", "ToolCallFormat"]

Check = Callable[[], None]  # raises where a result is not wanted any more

_MAX_CALLS = 16  # of one answer
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
        self,
        what: str,
        matcher: LLMatcher,
        num_tokens: int,
        closer: ClosingTokens,
        *,
        is_json: bool,
        is_large: bool,
    ) -> None:
        """what: the constraint, in errors. is_json: but for special tokens and thoughts, all is."""
        self._what = what
        self._is_large = is_large
        self._matcher = matcher
        self._closer = closer
        self._is_json = is_json
        self._words = np.zeros(-(-num_tokens // 32), np.uint32)
        self._buffer = self._words.ctypes.data, self._words.nbytes
        self._is_current = False  # the words are this state's mask

    def is_inactive(self) -> bool:
        """True where any token may follow."""
        return False

    def mask(self) -> NDArray[np.uint32]:
        """(ceil(V / 32),): bit i % 32 of word i / 32 says whether id i may come next.

        It is overwritten by the next call.
        """
        if not self._is_current:
            self._matcher.unsafe_compute_mask_ptr(*self._buffer)
            self._check()
            self._is_current = True
        return self._words

    def accept(self, token_id: int) -> None:
        """Go on behind a token."""
        self._is_current = False
        if not self._matcher.consume_token(token_id):
            self._check()

    def is_done(self) -> bool:
        """True where only an end token may follow."""
        return bool(self._matcher.is_stopped())

    def is_slow(self) -> bool:
        """True where any mask may take seconds."""
        return self._is_large

    def copy(self) -> "MatcherConstraint":
        """The same state for another sequence."""
        copied = copy.copy(self)
        copied._matcher = self._matcher.deep_copy()
        copied._words = self._words.copy()
        copied._buffer = copied._words.ctypes.data, copied._words.nbytes
        return copied

    def eos_redirect(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """End tokens, if the mask forbids them all, and the tokens that close the open part."""
        return self._closer.find(self._words, is_json=self._is_json)

    def _check(self) -> None:
        with _named(self._what):
            check_matcher(self._matcher)


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a text must be. Makers raise ConfigError, in one line, for what is malformed."""

    what: str  # in errors
    entry: Mapping[str, Any]  # as llguidance takes it; or {"text": a large grammar as it is}

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> "OutputFormat":
        """JSON that is valid against the schema."""
        return cls("json_schema", {"json_schema": set_json_whitespace(schema)})

    @classmethod
    def json_object(cls) -> "OutputFormat":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "OutputFormat":
        """Text that matches as a whole; the syntax is that of Rust's regex crate."""
        _check_chars("regex", len(pattern))
        (entry,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
        return cls("regex", {"lark_grammar": entry["lark_grammar"]})

    @classmethod
    def grammar(cls, text: str) -> "OutputFormat":
        """A Lark or GBNF grammar, told apart by its `start` or `root` rule."""
        _check_chars("grammar", len(text))
        if len(text) > CHEAP_CHARS:
            return cls("grammar", {"text": text})
        with _named("grammar"):
            return cls("grammar", {"lark_grammar": as_lark(text)})


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
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
        self.trial = GrammarProcess(functools.partial(_for_trial, tokenizer))

    def compile_format(self, form: OutputFormat, check: Check | None = None) -> MatcherConstraint:
        """A text of this form, and nothing else.

        check: called while the form is tried elsewhere; what it raises ends that. Errors:
        ConfigError for what is not supported, cannot be fulfilled, or goes beyond a limit.
        """
        part = {"name": form.what, **form.entry}
        return self._compile(form.what, [part], len(_json(form.what, part)), check)

    def compile_response(
        self,
        form: OutputFormat | None,
        calls: ToolCallFormat | None,
        thinking: Thinking = "none",
        check: Check | None = None,
    ) -> MatcherConstraint:
        """A text, tool calls, or either (at least one is given), perhaps behind thoughts.

        thinking: "may" = `<think>…</think>` may come first; "open" = the prompt has begun it. For
        optional calls in free text see `guard`. check, errors: `text`.
        """
        rules = [r"TEXT: /(.|\n)+/"]
        bodies: list[str] = []
        num_chars = len(_json(form.what, form.entry)) if form is not None else 0
        if calls is not None:
            call_rules, num_call_chars = self._call_rules(calls)
            rules += call_rules
            num_chars += num_call_chars
            bodies.append("section")
        if form is not None and (calls is None or calls.is_auto):
            bodies.append("@form")
        start = f"({' | '.join(bodies)})"
        if thinking != "none":
            begin, end = self._marks("thoughts", _THINKING_MARKS)
            start = f"{f'({begin} TEXT? {end})?' if thinking == 'may' else f'TEXT? {end}'} {start}"
        lark = "\n".join([f"start: {start}", *rules])
        parts: list[dict[str, Any]] = [{"name": "answer", "lark_grammar": lark}]
        if "@form" in bodies and form is not None:
            parts.append({"name": "form", **form.entry})
        what = [form.what if form else "", "tools" if calls else ""]
        return self._compile(" and ".join(filter(None, what)), parts, num_chars, check)

    def compile_lazy_calls(
        self, calls: ToolCallFormat, check: Check | None = None
    ) -> LazyToolCalls | None:
        """Any text, in which calls are of declared tools; None: the vocabulary has no calls.

        check, errors: `text`; ConfigError where the vocabulary has no calls and tools are strict.
        """
        is_strict = any(tool["function"].get("strict") for tool in calls.tools)
        if not is_strict and None in map(self._tokenizer.special_id, _TOOL_MARKS):
            return None
        rules, num_chars = self._call_rules(calls)
        lark = "\n".join(["start: section | calls_0", *rules])
        part = {"name": "answer", "lark_grammar": lark}
        compiled = self._compile("tools", [part], num_chars, check)
        begins = {
            token_id: self._tokenizer.special_id(names[0])
            for names in (SECTION_BEGIN, CALL_BEGIN)
            for name in names
            if (token_id := self._tokenizer.special_id(name)) is not None
        }
        return LazyToolCalls(compiled, {i: own for i, own in begins.items() if own is not None})

    def _call_rules(self, calls: ToolCallFormat) -> tuple[list[str], int]:
        """Rules of `section` and `calls_0`, and how many characters the client has chosen."""
        section_begin, section_end, begin, arguments, end = self._marks("tool calls", _TOOL_MARKS)
        functions = [tool["function"] for tool in calls.tools]
        is_one = calls.choice not in ("auto", "required")
        if is_one:
            functions = [f for f in functions if f["name"] == calls.choice]
        if not functions:
            raise ConfigError(f"tool_choice {calls.choice!r:.60}: no such tool is declared")
        num_calls = _MAX_CALLS if calls.is_parallel and not is_one else 1
        names: dict[str, list[str]] = {}  # by the schema of the arguments
        num_chars = sum(len(function["name"]) for function in functions)
        for function in functions:
            is_strict = bool(function.get("strict"))
            is_free = calls.is_auto and not is_strict
            schema = {"type": "object"} if is_free else function.get("parameters")
            schema = set_json_whitespace({"type": "object", **(schema or {})}, is_strict=is_strict)
            written = _json("tools", schema)
            names.setdefault(written, []).append(function["name"])
            num_chars += 0 if is_free else len(written)
        rules = [f"section: {section_begin} calls_0 {section_end}"]
        for i, (schema, alike) in enumerate(names.items()):
            ids = " | ".join(json.dumps(f"functions.{name}") for name in alike)
            rules += [f"id_{i}: {ids}", f"arguments_{i}: %json {schema}"]
        for n in range(num_calls):
            number = f'":{calls.first_index + n}"'
            calls_n = " | ".join(
                f"id_{i} {number} {arguments} arguments_{i}" for i in range(len(names))
            )
            more = f" calls_{n + 1}?" if n + 1 < num_calls else ""
            rules.append(f"calls_{n}: {begin} ({calls_n}) {end}{more}")
        return rules, num_chars

    def _marks(self, what: str, names: Sequence[str]) -> list[str]:
        """Special tokens as a grammar names them."""
        out = []
        for name in names:
            token_id = self._tokenizer.special_id(name)
            if token_id is None:
                raise ConfigError(f"{what} cannot be constrained: the vocabulary has no {name}")
            out.append(f"<[{token_id}]>")
        return out

    def _compile(
        self, what: str, parts: Sequence[Mapping[str, Any]], num_chars: int, check: Check | None
    ) -> MatcherConstraint:
        """num_chars: of the parts, those that a client has chosen."""
        _check_chars(what, len(_json(what, parts)))
        is_json = all("json_schema" in part for part in parts if part["name"] != "answer")
        is_large = num_chars > CHEAP_CHARS
        with _named(what):
            if is_large:
                parts = self.trial.resolve(parts, check)
            matcher = on_deep_stack(lambda: build(self._vocabulary, parts))
        constraint = MatcherConstraint(
            what,
            matcher,
            self._tokenizer.num_tokens,
            self._closer,
            is_json=is_json,
            is_large=is_large,
        )
        if not constraint.is_done():
            constraint.mask()
        return constraint

    @functools.cached_property
    def _closer(self) -> ClosingTokens:
        tokens = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.num_tokens)]
        marks = map(self._tokenizer.special_id, (*CALL_END, *SECTION_END))
        ends = {*self._tokenizer.eos_ids, *(mark for mark in marks if mark is not None)}
        return ClosingTokens(tokens, ends, self._tokenizer.special_id("</think>"))

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


def _for_trial(tokenizer: Tokenizer) -> dict[str, Any]:
    """Vocabulary in the terms of the process that tries grammars."""
    vocabulary = _Vocabulary(tokenizer)
    return {
        "tokens": vocabulary.tokens,
        "special_ids": vocabulary.special_token_ids,
        "eos_ids": sorted(tokenizer.eos_ids),
        "bos_id": tokenizer.bos_id,
    }


def _json(what: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {one_line(str(error))}") from None


def _check_chars(what: str, num_chars: int) -> None:
    if num_chars > MAX_CHARS:
        raise ConfigError(f"{what}: more than {MAX_CHARS} characters")


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Put the constraint's name before errors."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None

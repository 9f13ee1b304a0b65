"""Structured output: compiles JSON schemas, regexes, grammars and tool calls into constraints.

llguidance compiles over the model's own vocabulary. Free text in a grammar never matches special
tokens; a grammar refers to these by id, as `<[163595]>`. Large grammars are tried in another
process first (text/grammar_process.py), and the first mask of each is computed here, so that what
is not supported is refused before a request starts. Sources: Lark as in llguidance's
docs/syntax.md; GBNF as in llama.cpp's grammars/README.md; tool calls: Moonshot's
tool_call_guidance.md.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from hybridmoe.errors import ConfigError
from hybridmoe.text.closing_tokens import ClosingTokens
from hybridmoe.text.grammar_build import build, prefixed_errors
from hybridmoe.text.grammar_limits import CHEAP_CHARS, on_deep_stack
from hybridmoe.text.grammar_process import GrammarProcess
from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.lazy_tool_calls import LazyToolCalls
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat, check_chars, to_json
from hybridmoe.text.thinking import Thinking
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_call_tokens import CALL_BEGIN, CALL_END, SECTION_BEGIN, SECTION_END

__all__ = ["GrammarCompiler"]

Check = Callable[[], None]  # raises to cancel the compilation

_MAX_CALLS = 16  # of one response
_TOOL_MARKS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_THINKING_MARKS = ("<think>", "</think>")


class GrammarCompiler:
    """Compiles constraints for one tokenizer. Prepares its vocabulary at the first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.process = GrammarProcess(functools.partial(_vocabulary_for_process, tokenizer))

    def compile_format(self, format: OutputFormat, check: Check | None = None) -> MatcherConstraint:
        """Compile a format that is the whole output.

        check: called during a trial in another process; raises to cancel it. Errors: ConfigError
        for what is not supported, cannot be fulfilled, or exceeds a limit.
        """
        part = {"name": format.name, **format.grammar}
        return self._compile(format.name, [part], len(to_json(format.name, part)), check)

    def compile_response(
        self,
        format: OutputFormat | None,
        calls: ToolCallFormat | None,
        thinking: Thinking = "none",
        check: Check | None = None,
    ) -> MatcherConstraint:
        """Compile a response: a format, tool calls, or either of both; at least one is given.

        thinking: "may" = `<think>...</think>` may come first; "open" = the prompt has opened it.
        For optional calls in free text see `compile_lazy_calls`. check, errors: `compile_format`.
        """
        rules = [r"TEXT: /(.|\n)+/"]
        bodies: list[str] = []
        num_chars = len(to_json(format.name, format.grammar)) if format is not None else 0
        if calls is not None:
            call_rules, num_call_chars = self._call_rules(calls)
            rules += call_rules
            num_chars += num_call_chars
            bodies.append("section")
        if format is not None and (calls is None or calls.is_auto):
            bodies.append("@format")
        start = f"({' | '.join(bodies)})"
        if thinking != "none":
            begin, end = self._special_refs("thinking", _THINKING_MARKS)
            prefix = f"({begin} TEXT? {end})?" if thinking == "may" else f"TEXT? {end}"
            start = f"{prefix} {start}"
        lark = "\n".join([f"start: {start}", *rules])
        parts: list[dict[str, Any]] = [{"name": "response", "lark_grammar": lark}]
        if "@format" in bodies and format is not None:
            parts.append({"name": "format", **format.grammar})
        names = [format.name if format else "", "tools" if calls else ""]
        return self._compile(" and ".join(filter(None, names)), parts, num_chars, check)

    def compile_lazy_calls(
        self, calls: ToolCallFormat, check: Check | None = None
    ) -> LazyToolCalls | None:
        """Compile optional calls in free text; None if the vocabulary has no tool call tokens.

        check, errors: `compile_format`; ConfigError also for strict tools without such tokens.
        """
        is_strict = any(tool["function"].get("strict") for tool in calls.tools)
        if not is_strict and None in map(self._tokenizer.special_id, _TOOL_MARKS):
            return None
        rules, num_chars = self._call_rules(calls)
        lark = "\n".join(["start: section | calls_0", *rules])
        part = {"name": "response", "lark_grammar": lark}
        grammar = self._compile("tools", [part], num_chars, check)
        triggers = {
            token_id: self._tokenizer.special_id(texts[0])
            for texts in (SECTION_BEGIN, CALL_BEGIN)
            for text in texts
            if (token_id := self._tokenizer.special_id(text)) is not None
        }
        return LazyToolCalls(grammar, {i: own for i, own in triggers.items() if own is not None})

    def _call_rules(self, calls: ToolCallFormat) -> tuple[list[str], int]:
        """Make the Lark rules of `section` and `calls_0`, and count the client's characters."""
        functions = [tool["function"] for tool in calls.tools]
        is_single = calls.choice not in ("auto", "required")
        if is_single:
            functions = [f for f in functions if f["name"] == calls.choice]
        if not functions:
            raise ConfigError(f"tool_choice {calls.choice!r:.60}: no such tool is declared")
        names: dict[str, list[str]] = {}  # by the schema of the arguments
        num_chars = sum(len(function["name"]) for function in functions)
        for function in functions:
            is_strict = bool(function.get("strict"))
            is_any_object = calls.is_auto and not is_strict
            schema = {"type": "object"} if is_any_object else function.get("parameters")
            schema = set_json_whitespace({"type": "object", **(schema or {})}, is_strict=is_strict)
            schema_json = to_json("tools", schema)
            names.setdefault(schema_json, []).append(function["name"])
            num_chars += 0 if is_any_object else len(schema_json)
        section_begin, section_end, begin, arguments, end = self._special_refs(
            "tool calls", _TOOL_MARKS
        )
        rules = [f"section: {section_begin} calls_0 {section_end}"]
        for i, (schema_json, same_schema) in enumerate(names.items()):
            ids = " | ".join(json.dumps(f"functions.{name}") for name in same_schema)
            rules += [f"id_{i}: {ids}", f"arguments_{i}: %json {schema_json}"]
        num_calls = _MAX_CALLS if calls.is_parallel and not is_single else 1
        for n in range(num_calls):
            number = f'":{calls.first_index + n}"'
            call = " | ".join(
                f"id_{i} {number} {arguments} arguments_{i}" for i in range(len(names))
            )
            more = f" calls_{n + 1}?" if n + 1 < num_calls else ""
            rules.append(f"calls_{n}: {begin} ({call}) {end}{more}")
        return rules, num_chars

    def _special_refs(self, what: str, texts: Sequence[str]) -> list[str]:
        """Refer to special tokens by id. Raises ConfigError if the vocabulary lacks one."""
        out = []
        for text in texts:
            token_id = self._tokenizer.special_id(text)
            if token_id is None:
                raise ConfigError(f"{what} cannot be constrained: the vocabulary has no {text}")
            out.append(f"<[{token_id}]>")
        return out

    def _compile(
        self, name: str, parts: Sequence[Mapping[str, Any]], num_chars: int, check: Check | None
    ) -> MatcherConstraint:
        """Compile a grammar's parts and compute its first mask. num_chars: from the client."""
        check_chars(name, len(to_json(name, parts)))
        is_json = all("json_schema" in part for part in parts if part["name"] != "response")
        is_slow = num_chars > CHEAP_CHARS
        with prefixed_errors(name):
            if is_slow:
                parts = self.process.resolve(parts, check)
            matcher = on_deep_stack(lambda: build(self._vocabulary, parts))
        constraint = MatcherConstraint(
            matcher,
            self._tokenizer.num_tokens,
            self._closing_tokens,
            name=name,
            is_json=is_json,
            is_slow=is_slow,
        )
        if not constraint.is_done():
            constraint.mask()
        return constraint

    @functools.cached_property
    def _closing_tokens(self) -> ClosingTokens:
        tokens = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.num_tokens)]
        marks = map(self._tokenizer.special_id, (*CALL_END, *SECTION_END))
        end_ids = {*self._tokenizer.eos_ids, *(mark for mark in marks if mark is not None)}
        return ClosingTokens(tokens, end_ids, self._tokenizer.special_id("</think>"))

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        wrapped = TokenizerWrapper(_Vocabulary(self._tokenizer))
        eos_ids = sorted(self._tokenizer.eos_ids)
        return LLTokenizer(wrapped, n_vocab=self._tokenizer.num_tokens, eos_token=eos_ids)


class _Vocabulary:
    """Adapts a tokenizer to llguidance."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
        self.special_token_ids = list(filter(tokenizer.is_special, range(tokenizer.num_tokens)))

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_untrusted(text)


def _vocabulary_for_process(tokenizer: Tokenizer) -> dict[str, Any]:
    """Vocabulary as text/grammar_process.py sends it."""
    vocabulary = _Vocabulary(tokenizer)
    return {
        "tokens": vocabulary.tokens,
        "special_ids": vocabulary.special_token_ids,
        "eos_ids": sorted(tokenizer.eos_ids),
        "bos_id": tokenizer.bos_id,
    }

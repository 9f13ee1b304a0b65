"""Structured output: compiles JSON schemas, regexes, grammars and tool calls into constraints.

llguidance compiles over the model's own vocabulary. Free text in a grammar never matches special
tokens; a grammar refers to these by id, as `<[163595]>`. Large grammars are tried in another
process first (text/grammar_process.py), and the first mask of each is computed here, so that what
is not supported is refused before a request starts. Sources: Lark as in llguidance's
docs/syntax.md; GBNF as in llama.cpp's grammars/README.md; tool calls: Moonshot's
tool_call_guidance.md.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from hybridmoe.errors import ConfigError
from hybridmoe.text.call_grammar import CallRules, make_call_rules
from hybridmoe.text.closing_tokens import ClosingTokens
from hybridmoe.text.grammar_build import build, prefixed_errors
from hybridmoe.text.grammar_limits import CHEAP_CHARS, on_deep_stack
from hybridmoe.text.grammar_process import GrammarProcess
from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.lazy_tool_calls import LazyToolCalls
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat, check_chars, to_json
from hybridmoe.text.schema_errors import locate_error
from hybridmoe.text.thinking import Thinking
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import ToolSyntax

__all__ = ["GrammarCompiler"]

Check = Callable[[], None]  # raises to cancel the compilation

_THINKING_MARKS = ("<think>", "</think>")


class GrammarCompiler:
    """Compiles constraints for one tokenizer. Prepares its vocabulary at the first use."""

    def __init__(self, tokenizer: Tokenizer, syntax: ToolSyntax | None) -> None:
        """syntax: of the model's tool calls; None if it has none."""
        self._tokenizer = tokenizer
        self._syntax = syntax
        vocabulary = functools.partial(_vocabulary_for_process, tokenizer, syntax)
        self.process = GrammarProcess(vocabulary)

    def compile_format(self, format: OutputFormat, check: Check | None = None) -> MatcherConstraint:
        """Compile a format that is the whole output.

        check: called during a trial in another process; raises to cancel it. Errors: ConfigError
        for what is not supported, cannot be fulfilled, or exceeds a limit.
        """
        part = {"name": format.name, **format.grammar}
        num_chars = len(to_json(format.name, part))
        return self._compile(format.name, [part], num_chars, check, format.relaxed)

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
        relaxed = list(format.relaxed) if format is not None else []
        if calls is not None:
            made = self._call_rules(calls)
            rules += made.rules
            num_chars += made.num_chars
            relaxed += made.relaxed
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
        name = " and ".join(filter(None, names))
        try:
            return self._compile(name, parts, num_chars, check, relaxed)
        except ConfigError as error:
            raise self._located(error, calls, check) from None

    def compile_lazy_calls(
        self, calls: ToolCallFormat, check: Check | None = None
    ) -> LazyToolCalls | None:
        """Compile optional calls in free text; None if the vocabulary has no tool call tokens.

        check, errors: `compile_format`; ConfigError also for strict tools without such tokens.
        """
        is_strict = any(tool["function"].get("strict") for tool in calls.tools)
        if not is_strict and (self._syntax is None or not self._syntax.triggers):
            return None
        made = self._call_rules(calls)
        assert self._syntax is not None
        lark = "\n".join([f"start: {made.lazy_start}", *made.rules])
        part = {"name": "response", "lark_grammar": lark}
        try:
            grammar = self._compile("tools", [part], made.num_chars, check, made.relaxed)
        except ConfigError as error:
            raise self._located(error, calls, check) from None
        return LazyToolCalls(grammar, self._syntax.triggers)

    def _call_rules(self, calls: ToolCallFormat) -> CallRules:
        if self._syntax is None or not self._syntax.triggers:
            raise ConfigError(
                "tool calls cannot be constrained: the vocabulary has no tokens for them"
            )
        return make_call_rules(self._syntax, calls)

    def _located(
        self, error: ConfigError, calls: ToolCallFormat | None, check: Check | None
    ) -> ConfigError:
        """Add the tool and the path in its schema to an error."""
        if calls is None:
            return error
        functions = [f for f in calls.functions if f.get("strict") or not calls.is_auto]
        return locate_error(
            functions,
            error,
            lambda schema: self._try("schema", {"json_schema": set_json_whitespace(schema)}, check),
        )

    def _try(self, name: str, part: Mapping[str, Any], check: Check | None) -> None:
        """Compile a part alone. Raises ConfigError."""
        parts = [{"name": name, **part}]
        if len(to_json(name, parts)) > CHEAP_CHARS:
            self.process.resolve(parts, check)
        else:
            on_deep_stack(lambda: build(self._vocabulary, parts))

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
        self,
        name: str,
        parts: Sequence[Mapping[str, Any]],
        num_chars: int,
        check: Check | None,
        relaxed: Sequence[str],
    ) -> MatcherConstraint:
        """Compile a grammar's parts and compute its first mask. num_chars: from the client."""
        check_chars(name, len(to_json(name, parts)))
        is_json = all("json_schema" in part for part in parts if part["name"] != "response")
        if "tools" in name and self._syntax is not None and self._syntax.form.xml is not None:
            is_json = is_json and self._syntax.value_end is not None
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
            relaxed=relaxed,
        )
        if not constraint.is_done():
            constraint.mask()
        return constraint

    @functools.cached_property
    def _closing_tokens(self) -> ClosingTokens:
        tokens = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.num_tokens)]
        end_ids = {*self._tokenizer.eos_ids, *(self._syntax.end_ids if self._syntax else ())}
        closing = [self._tokenizer.special_id("</think>")]
        closing += [self._syntax.value_end] if self._syntax else []
        return ClosingTokens(tokens, end_ids, [i for i in closing if i is not None])

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        wrapped = TokenizerWrapper(_Vocabulary(self._tokenizer, self._syntax))
        eos_ids = sorted(self._tokenizer.eos_ids)
        return LLTokenizer(wrapped, n_vocab=self._tokenizer.num_tokens, eos_token=eos_ids)


class _Vocabulary:
    """Adapts a tokenizer to llguidance."""

    def __init__(self, tokenizer: Tokenizer, syntax: ToolSyntax | None) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
        hidden = filter(tokenizer.is_special, range(tokenizer.num_tokens))
        self.special_token_ids = sorted({*hidden, *(syntax.token_ids if syntax else ())})

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_untrusted(text)


def _vocabulary_for_process(tokenizer: Tokenizer, syntax: ToolSyntax | None) -> dict[str, Any]:
    """Vocabulary as text/grammar_process.py sends it."""
    vocabulary = _Vocabulary(tokenizer, syntax)
    return {
        "tokens": vocabulary.tokens,
        "special_ids": vocabulary.special_token_ids,
        "eos_ids": sorted(tokenizer.eos_ids),
        "bos_id": tokenizer.bos_id,
    }

"""Tool call syntax of one model: how its calls are found, read and written.

Chosen from the vocabulary and the chat template when the model is opened. Nothing else knows the
families of models (text/call_form.py).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybridmoe.text.call_form import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    DSML,
    DSML_TOKEN,
    GLM,
    KIMI,
    CallForm,
)
from hybridmoe.text.call_reader import CallParts, CallReader, JsonCallReader
from hybridmoe.text.mark_scanner import MarkScanner, stand_in
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_names import ToolNames
from hybridmoe.text.xml_call_reader import XmlCallReader

__all__ = ["ToolSyntax", "choose_syntax"]


def choose_syntax(tokenizer: Tokenizer, template: str = "") -> "ToolSyntax | None":
    """Choose the syntax of a model; None if its vocabulary has no tool call tokens.

    template: the source of its chat template, which tells apart forms with the same tokens.
    """

    def has_tokens(form: CallForm) -> bool:
        return all(tokenizer.special_id(text) is not None for text in form.tokens)

    is_dsml = DSML_TOKEN in template or (
        tokenizer.special_id(DSML_TOKEN) is not None and DEEPSEEK_V31.tokens[2] not in template
    )
    if is_dsml:
        name = "function_calls" if f"{DSML_TOKEN}tool_calls" not in template else "tool_calls"
        return ToolSyntax(DSML[name], tokenizer)
    deepseek = DEEPSEEK_V3 if "```json" in template else DEEPSEEK_V31
    found = next((form for form in (KIMI, deepseek, GLM) if has_tokens(form)), None)
    return None if found is None else ToolSyntax(found, tokenizer)


class ToolSyntax:
    """One family's calls in one vocabulary."""

    def __init__(self, form: CallForm, tokenizer: Tokenizer) -> None:
        self.form = form
        texts = {*form.tokens, *form.trigger, *form.marks}
        self._ids = {
            text: token_id
            for text in sorted(texts)
            if (token_id := tokenizer.special_id(text)) is not None
        }
        self._stand_ins = {text: stand_in(i) for i, text in enumerate(self._ids)}
        self.stand_ins: Mapping[int, str] = {
            self._ids[text]: character for text, character in self._stand_ins.items()
        }  # of the special tokens that are parts of marks, by id
        self._tokens = re.compile("|".join(map(re.escape, self._ids)) or r"(?!)")

    @property
    def family(self) -> str:
        """Name of the family, for people."""
        return self.form.family

    @property
    def token_ids(self) -> Sequence[int]:
        """Special tokens of calls: free text under a grammar cannot hold them."""
        return list(self._ids.values())

    @property
    def triggers(self) -> Mapping[int, int]:
        """Tokens that begin calls, each with the one that a grammar has for it."""
        own = {text: text for text in self.form.trigger}
        strays = {text: own for text, mark in self.form.marks.items() if mark == "stray begin"
                  for own in self.form.trigger[:1]}  # fmt: skip
        return {
            self._ids[text]: self._ids[one]
            for text, one in {**strays, **own}.items()
            if text in self._ids and one in self._ids
        }

    @property
    def end_ids(self) -> Sequence[int]:
        """Tokens that end a call, or all calls."""
        ends = ("call end", "section end", "stray end")
        return [
            self._ids[t] for t, mark in self.form.marks.items() if mark in ends and t in self._ids
        ]

    @property
    def value_end(self) -> int | None:
        """Token that ends a value which is not JSON."""
        return None if self.form.xml is None else self._ids.get(self.form.xml.value_end)

    def scanner(self) -> MarkScanner:
        """Make the scanner of one response."""
        marks = {}
        for text, mark in self.form.marks.items():
            is_token = text in self._ids
            marks[self._replace(text)] = (
                f"section {mark[6:]}" if is_token and (mark.startswith("stray")) else mark
            )
        return MarkScanner(marks, {c: text for text, c in self._stand_ins.items()})

    def reader(
        self, tools: Sequence[Mapping[str, Any]], make_call_id: Callable[[str, int], str]
    ) -> CallReader:
        """Make the reader of one response. tools: the declared ones; any without."""
        names, parts = ToolNames(tools), CallParts(make_call_id)
        if self.form.xml is None:
            return JsonCallReader(names, parts)
        return XmlCallReader(names, parts, has_tags=not self.form.tokens)

    def lark(self, text: str) -> str:
        """Convert a text to Lark: special tokens by id, and strings."""
        out, start = [], 0
        for match in self._tokens.finditer(text):
            out += [text[start : match.start()], f"<[{self._ids[match.group()]}]>"]
            start = match.end()
        out.append(text[start:])
        return " ".join(
            json.dumps(part, ensure_ascii=False) if i % 2 == 0 else part
            for i, part in enumerate(out)
            if part
        )

    @property
    def has_numbers(self) -> bool:
        """True if a call's id holds its number in the conversation (Kimi)."""
        return "{number}" in self.form.call[1]

    def write(self, calls: Sequence[Mapping[str, Any]], first_number: int) -> str:
        """Write calls as the model does. calls: name, and arguments as JSON text."""
        before, behind, end = self.form.call
        written = [
            before
            + call["name"]
            + behind.replace("{number}", str(first_number + i))
            + self._write_arguments(call["arguments"])
            + end
            for i, call in enumerate(calls)
        ]
        return self.form.section[0] + self.form.between.join(written) + self.form.section[1]

    def _write_arguments(self, arguments: str) -> str:
        xml = self.form.xml
        if xml is None:
            return arguments
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        if not isinstance(values, dict):
            return arguments
        out = []
        for name, value in values.items():
            is_text = isinstance(value, str)
            text = value if is_text else json.dumps(value, ensure_ascii=False)
            out += [*xml.key[:1], name, xml.key[1], xml.value_begin[0 if is_text else 1], text]
            out.append(xml.value_end)
        return "".join(out)

    def split_at_token(self, text: str) -> tuple[str, str]:
        """Split a text before its first special token."""
        match = self._tokens.search(text)
        at = match.start() if match else len(text)
        return text[:at], text[at:]

    def _replace(self, text: str) -> str:
        return self._tokens.sub(lambda match: self._stand_ins[match.group()], text)

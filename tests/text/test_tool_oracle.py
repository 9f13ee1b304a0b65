"""Generated outputs of five families: read as they are meant, and as SGLang's parsers read them.

Where these differ, a reason is written here.
"""

import json
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import family
from tool_call_texts import PARSERS, TOOLS, Output, generate_outputs

from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import ResponseParser
from hybridmoe.text.tokenizer import Tokenizer

COUNT = 300
OUTPUTS = generate_outputs(COUNT)
Calls = list[tuple[str, dict[str, Any]]]

# What the oracle does otherwise, by family and by the way in which an output strays.
REASONS = {
    ("kimi", "no section"): "finds calls only behind a section's mark, in whole texts",
    ("kimi", "singular section"): "finds calls only behind the plural mark",
    ("kimi", "no end"): "drops a last call without its end mark, though its JSON is complete",
    ("kimi", "joined name"): "drops a call whose id is not NAME:N",
    ("kimi", "prefix"): "takes `tool.` for a part of the name",
    ("kimi", "undeclared"): "passes calls of tools on that are not declared",
    ("kimi", "fence"): "drops a call with a code fence around its arguments",
    ("deepseek-v3", "no end"): "drops a last call without its end mark",
    ("deepseek-v3.1", "no end"): "drops a last call without its end mark",
    ("deepseek-v3", "other form"): "knows the form of its own version only",
    ("deepseek-v3.1", "other form"): "takes `function` for the name, and drops all calls",
    ("deepseek-v3", "undeclared"): "loses the text of a call of an undeclared tool",
    ("deepseek-v3.1", "undeclared"): "loses the text of a call of an undeclared tool",
    ("dsml", "no end"): "drops all calls of a section without its end mark",
    ("dsml", "undeclared"): "loses the text of a call of an undeclared tool",
    ("glm", "no end"): "drops a last call without its end mark",
    ("glm", "undeclared"): "loses the text of a call of an undeclared tool",
    ("glm", "text behind"): "loses text behind calls",
}  # fmt: skip


def split_randomly(draw: random.Random, tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text cut at random places, never within a special token."""
    ids: list[int] = []
    start = 0
    for begin, end in [*tokenizer.special_spans(text), (len(text), len(text))]:
        while start < begin:
            cut = min(begin, start + draw.randint(1, 12))
            ids += tokenizer.encode_untrusted(text[start:cut])
            start = cut
        ids += tokenizer.encode(text[begin:end], parse_special=True)
        start = end
    return ids


def read(name: str, ids: Sequence[int]) -> tuple[str, Calls]:
    tokenizer, syntax = family(name)
    parser = ResponseParser(tokenizer, syntax=syntax, may_call=True, tools=TOOLS)
    response = Response(parser)
    for token_id in ids:
        response.push(token_id)
    response.finish("stop")
    calls = [(call.name, json.loads(call.arguments)) for call in response.tool_calls]
    return response.text, calls


@pytest.mark.parametrize("name", PARSERS)
def test_outputs_are_read_as_they_are_meant(name: str) -> None:
    draw = random.Random(1)
    tokenizer, _ = family(name)
    outputs = [output for output in OUTPUTS if output.family == name]
    assert len(outputs) == COUNT // len(PARSERS)
    for output in outputs:
        meant = (output.visible, output.calls)
        assert read(name, tokenizer.encode(output.text, parse_special=True)) == meant, output
        for _ in range(3):
            assert read(name, split_randomly(draw, tokenizer, output.text)) == meant, output


def why_not(output: Output, text: str, calls: list[list[str]]) -> str | None:
    """Explain where the oracle reads something else; "" if it does not, None without a reason."""
    found = [(name, json.loads(arguments)) for name, arguments in calls]
    if found == output.calls and text.strip() == output.visible.strip():
        return ""
    strays = (REASONS.get((output.family, stray)) for stray in output.strays)
    reason = next(filter(None, strays), None)
    if reason is None and output.family == "glm" and found == _reread(output.calls):
        return "reads a string's text as JSON first: `true` becomes Python's `True`"
    if reason is None and output.family == "dsml" and _stripped(found) == _stripped(output.calls):
        return "strips the blanks around strings; the model's own encoding keeps them"
    return reason


def _stripped(calls: Calls) -> Calls:
    return [
        (name, {key: v.strip() if isinstance(v, str) else v for key, v in arguments.items()})
        for name, arguments in calls
    ]


def _reread(calls: Calls) -> Calls:
    """Make the strings that hold JSON what Python prints for it."""

    def reread(value: Any) -> Any:
        try:
            return str(json.loads(value)) if isinstance(value, str) else value
        except ValueError:
            return value

    return [(name, {k: reread(v) for k, v in arguments.items()}) for name, arguments in calls]


def parser_of(output: Output) -> str:
    """Choose SGLang's parser for an output: GLM-4.7 and later write calls without line breaks."""
    return "glm47" if "no lines" in output.strays else PARSERS[output.family]


def test_the_oracle_agrees_or_a_reason_is_written() -> None:
    python = os.environ.get("TOOL_ORACLE_PYTHON", "")
    if not python:
        pytest.skip("TOOL_ORACLE_PYTHON names no interpreter with llm-router-utils 0.8.1")
    script = Path(__file__).parents[1] / "support" / "tool_oracle.py"
    asked = json.dumps([[parser_of(o), TOOLS, o.text] for o in OUTPUTS])
    answers = json.loads(
        subprocess.run(
            [python, str(script)], input=asked, capture_output=True, text=True, check=True
        ).stdout
    )
    reasons = [why_not(o, *answer) for o, answer in zip(OUTPUTS, answers, strict=True)]
    unexplained = [
        (output, answer)
        for output, answer, reason in zip(OUTPUTS, answers, reasons, strict=True)
        if reason is None
    ]
    print(f"{reasons.count('')} of {COUNT} agree")
    assert not unexplained, unexplained[:3]
    assert reasons.count("") > COUNT // 2

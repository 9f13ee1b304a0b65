"""Draft tokens under a constraint: fewer steps, and the same response to the last bit."""

from collections.abc import Iterator
from typing import Any

import pytest
from engine_run import request, run

import hybridmoe
from hybridmoe.engine import constraint_masks
from hybridmoe.engine.request import Request
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat

pytestmark = pytest.mark.usefixtures("exact_kernels")

ROW = {
    "type": "object",
    "properties": {"temperature": {"type": "integer"}, "unit": {"const": "degrees"}},
    "required": ["temperature", "unit"],
    "additionalProperties": False,
}
ROWS = OutputFormat.json_schema({"type": "array", "items": ROW, "minItems": 6, "maxItems": 6})
LIST = OutputFormat.lark_or_gbnf('root ::= ("sum: " [0-9] [0-9] "\\n"){9}')
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": ROW}}


@pytest.fixture(scope="module")
def plain() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load() as llm:
        yield llm


@pytest.fixture(scope="module")
def fast() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(speculate=4) as llm:
        yield llm


def requests(llm: hybridmoe.LLM, **options: Any) -> list[Request]:
    """Requests of every kind of constraint, among them one that is active from a call on."""
    compiler = GrammarCompiler(llm.tokenizer, llm.tool_syntax)
    required = ToolCallFormat([TOOL], "required", is_parallel=True)
    lazy = compiler.compile_lazy_calls(ToolCallFormat([TOOL], "auto"))
    prompt = llm.encode_chat([{"role": "user", "content": "What is the weather in Paris?"}], [TOOL])
    return [
        request(prompt, 120, constraint=constraint, top_logprobs=2, seed=seed, **options)
        for seed, constraint in enumerate(
            [
                compiler.compile_format(ROWS),
                compiler.compile_format(LIST),
                compiler.compile_response(None, required),
                lazy,
            ]
        )
    ]


@pytest.mark.parametrize("masks", ["inline", "in the thread", "late"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_the_number_of_steps_and_nothing_else(
    plain: hybridmoe.LLM,
    fast: hybridmoe.LLM,
    temperature: float,
    masks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run(plain.engine, *requests(plain, temperature=temperature))
    if masks != "inline":
        monkeypatch.setattr(constraint_masks, "INLINE_BUDGET_S", -1.0)
    if masks == "late":
        monkeypatch.setattr(constraint_masks, "_WAIT_BUDGET_S", 0.0)
    responses = run(fast.engine, *requests(fast, temperature=temperature))
    for response, same in zip(responses, expected, strict=True):
        assert response.ids == same.ids
        assert response.end.reason == same.end.reason
        assert [token.top for token in response.tokens] == [token.top for token in same.tokens]
    accepted = sum(response.end.usage.accepted_tokens for response in responses)
    if masks == "inline":  # else it is a matter of time
        assert accepted > 90


def test_what_the_constraint_forbids_is_not_drafted(fast: hybridmoe.LLM) -> None:
    compiler = GrammarCompiler(fast.tokenizer, fast.tool_syntax)
    constraint = compiler.compile_format(OutputFormat.regex("ab{2}"))
    ids = fast.tokenizer.encode("abbb")
    a, b = fast.tokenizer.encode("a")[0], fast.tokenizer.encode("b")[0]
    assert constraint.num_allowed([a, b, b, b]) == 3
    assert constraint.num_allowed([b, a]) == constraint.num_allowed([]) == 0
    before = constraint.mask().copy()
    constraint.num_allowed(ids)
    assert (constraint.mask() == before).all()
    constraint.accept(a)
    assert constraint.num_allowed([b, b, a]) == 2

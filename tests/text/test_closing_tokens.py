"""EOS redirect: a model that would end within a format closes it and ends."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_run import request, run
from parsed_response import parse_response

import hybridmoe
from hybridmoe.engine.constraint import EosRedirect
from hybridmoe.engine.sampler import Sampler
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat

pytestmark = pytest.mark.usefixtures("exact_kernels")

LOGITS = np.array([1.0, 4.0, 2.0, 0.0, 3.0], np.float32)
MASK = np.array([0b01101], np.uint32)  # ids 0, 2 and 3
TOOL = {"type": "function", "function": {"name": "f"}}


def redirect(end_ids: list[int], closing_ids: list[int]) -> EosRedirect:
    return np.array(end_ids), np.array(closing_ids)


@pytest.mark.parametrize(
    ("params", "given", "expected"),
    [
        ({}, None, 2),
        ({}, redirect([1], [3]), 3),
        ({}, redirect([1, 4], [0]), 0),
        ({"logit_bias": {1: -9.0, 4: -9.0}}, redirect([1, 4], [3]), 2),
        ({"logit_bias": {3: -np.inf}}, redirect([1], [3]), 2),
    ],
)
def test_closing_tokens_get_the_best_score_of_end_tokens(
    params: dict[str, Any], given: EosRedirect | None, expected: int
) -> None:
    for temperature in (0.0, 0.01):
        sampler = Sampler(SamplingParams(temperature=temperature, seed=0, **params), [], 5)
        assert sampler.sample(LOGITS, MASK, given) == expected


def test_an_allowed_best_token_is_sampled_all_the_same() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0), [], 5)
    assert sampler.sample(LOGITS, np.array([0b01010], np.uint32), redirect([4], [3])) == 1


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load() as llm:
        yield llm


@pytest.fixture(scope="module")
def compiler(llm: hybridmoe.LLM) -> GrammarCompiler:
    return GrammarCompiler(llm.tokenizer, llm.tool_syntax)


def closing_tokens(llm: hybridmoe.LLM, constraint: MatcherConstraint, text: str) -> set[str]:
    """Closing tokens after this text."""
    for token_id in llm.tokenizer.encode(text, parse_special=True):
        constraint.accept(token_id)
    constraint.mask()
    found = constraint.eos_redirect()
    return set() if found is None else {llm.tokenizer.decode([i]) for i in found[1]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("{", {"}"}),
        ('{"', {'"'}),
        ('{"key', {'"'}),
        ('{"key"', set()),
        ('{"key":', {'"'}),
        ('{"key":-', set()),
        ('{"key":12', {"}"}),
        ('{"key":[', {"]"}),
        ('{"key":[12', {"]"}),
        ('{"key":[12,', {'"'}),
        ('{"key":["}]', {'"'}),
        ('{"key":{', {"}"}),
        ('{"key":{}', {"}"}),
        ('{"key":1,', {'"'}),
        ('{"key":1}', set()),
    ],
)
def test_closing_tokens_in_json(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, text: str, expected: set[str]
) -> None:
    format = OutputFormat.json_object()
    assert closing_tokens(llm, compiler.compile_format(format), text) == expected
    assert (
        closing_tokens(llm, compiler.compile_response(format, ToolCallFormat([TOOL], "auto")), text)
        == expected
    )
    call = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    )
    assert (
        closing_tokens(
            llm, compiler.compile_response(None, ToolCallFormat([TOOL], "required")), call + text
        )
        == expected
    )
    assert (
        closing_tokens(
            llm, compiler.compile_response(format, None, "may"), f"<think>a</think>{text}"
        )
        == expected
    )


def test_thinking_is_closed_and_other_formats_have_no_closing_tokens(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    for format, calls in (
        (OutputFormat.json_object(), None),
        (None, ToolCallFormat([TOOL], "required")),
    ):
        assert closing_tokens(llm, compiler.compile_response(format, calls, "open"), 'so {"') == {
            "</think>"
        }
    for format in (
        OutputFormat.regex('a["}Z]*Z'),
        OutputFormat.lark_or_gbnf('root ::= "a" ["}Z]+ "Z"'),
    ):
        assert closing_tokens(llm, compiler.compile_format(format), "a") == set()


INTEGER = {"type": "integer"}
SUM = {
    "type": "object",
    "properties": {"a": INTEGER, "b": INTEGER, "sum": INTEGER},
    "required": ["a", "b", "sum"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "format", [OutputFormat.json_schema(SUM), OutputFormat.json_object()], ids=["sum", "any"]
)
def test_output_is_complete_json_from_a_model_that_knows_none(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, format: OutputFormat
) -> None:
    questions = ("What is 47 + 38?", "Hello!", "My name is Bokira.", "What is 90 - 11?")
    requests = []
    for question in questions:
        prompt = llm.encode_chat([{"role": "user", "content": question}])
        for seed, temperature in enumerate((0.0, 0.7)):
            options = {"seed": seed, "temperature": temperature}
            requests.append(
                request(prompt, 120, constraint=compiler.compile_response(format, None), **options)
            )
    for response in run(llm.engine, *requests):
        assert response.end.reason == "stop"
        data = json.loads(llm.tokenizer.decode(response.ids))
        assert isinstance(data, dict)


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize(
    ("name", "key", "question", "value"),
    [
        ("get_weather", "city", "What is the weather in Paris?", "Paris"),
        ("get_weather", "city", "Weather in Oslo?", "Oslo"),
        ("calculator", "expression", "What is 12*34?", "12*34"),
    ],
)
def test_trained_arguments_are_right_under_a_constraint(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, choice: str,
    name: str, key: str, question: str, value: str,
) -> None:  # fmt: skip
    schema = {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
    function = {"name": name, "parameters": schema, "strict": True}
    tools = [{"type": "function", "function": function}]
    calls = ToolCallFormat(tools, choice)
    constraint = (
        compiler.compile_lazy_calls(calls)
        if calls.is_auto
        else compiler.compile_response(None, calls)
    )
    prompt = llm.encode_chat([{"role": "user", "content": question}], tools)
    (response,) = run(llm.engine, request(prompt, 80, constraint=constraint))
    assert response.end.reason == "stop"
    (call,) = parse_response(response.ids, llm.tokenizer).tool_calls
    assert json.loads(call.arguments) == {key: value}

"""Lazy tool-call grammar: no masks in free text; calls are of declared tools only."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from constrained import accepts
from engine_run import request, run
from numpy.typing import NDArray
from parsed_response import parse_response

import hybridmoe
from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.lazy_tool_calls import LazyToolCalls
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import ToolCallFormat
from hybridmoe.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("exact_kernels")

SECTION, BEGIN, ARGUMENTS, END, SECTION_END = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool("look_up"), tool("look_down"), tool("time-now")]


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(speculate=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def compiler(llm: hybridmoe.LLM) -> GrammarCompiler:
    return GrammarCompiler(llm.tokenizer, llm.tool_syntax)


def lazy_calls(compiler: GrammarCompiler, calls: ToolCallFormat | None = None) -> LazyToolCalls:
    lazy = compiler.compile_lazy_calls(calls or ToolCallFormat(TOOLS, "auto", first_index=2))
    assert lazy is not None
    return lazy


CALL = f'{BEGIN}functions.look_up:2{ARGUMENTS}{{"a": [1, "x"]}}{END}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ('any text, even "functions.nope:0"', True),
        (f"Hm. {SECTION}{CALL}{SECTION_END}", True),
        (f"<think>why{SECTION}{CALL}{SECTION_END}", True),
        (f"{SECTION}{CALL}{CALL.replace('up:2', 'down:3')}{SECTION_END}", True),
        (f"Hm. {CALL}", True),
        (f"{CALL}{CALL.replace('up:2', 'down:3')}", True),
        (f"{SECTION}{CALL}{SECTION_END}more", False),
        (f"{SECTION}{CALL}", False),
        (f"{SECTION}{SECTION_END}", False),
        (f"{SECTION}{CALL}".replace("look_up", "nope"), False),
        (f"{CALL}".replace("look_up", "look"), False),
        (f"{CALL}".replace("functions.look_up:2", "3"), False),
        (f"{CALL}".replace(":2", ":0"), False),
        (f"{CALL}".replace('{"a": [1, "x"]}', "[]"), False),
        (f"{CALL}".replace("[1,", "[1,  "), False),
    ],
)
def test_calls_are_constrained_and_text_is_not(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, text: str, expected: bool
) -> None:
    lazy = lazy_calls(compiler)
    untouched = lazy.copy()
    assert accepts(lazy, llm.tokenizer, text) == expected
    assert untouched.is_inactive()


def test_no_mask_is_computed_before_a_call(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[int] = []
    mask = MatcherConstraint.mask

    def count(constraint: MatcherConstraint) -> NDArray[np.uint32]:
        masks.append(1)
        return mask(constraint)

    constraint = lazy_calls(compiler)
    monkeypatch.setattr(MatcherConstraint, "mask", count)
    prompt = llm.encode_chat([{"role": "user", "content": "Hello! What can you do?"}])
    free, constrained = run(
        llm.engine, request(prompt, 24), request(prompt, 24, constraint=constraint)
    )
    assert constrained.ids == free.ids[: len(constrained.ids)]
    assert len(constrained.ids) > 4
    assert not masks


def test_draft_tokens_are_accepted_in_free_text(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    prompt = llm.encode_chat([{"role": "user", "content": "Count from 1 to 9. " * 3}])
    (response,) = run(
        llm.engine,
        request([*prompt, *prompt], 40, ignore_eos=True, constraint=lazy_calls(compiler)),
    )
    assert len(response.ids) == 40
    assert response.end.usage.draft_tokens > 0


def test_all_calls_are_of_declared_tools(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    prompt = llm.encode_chat(weather, [tool("get_weather"), tool("calculator")])
    free = run(llm.engine, request(prompt, 60, ignore_eos=False))[0].ids
    assert parse_response(free, llm.tokenizer).tool_calls[0].name == "get_weather"
    for declared in (TOOLS, [tool("get_weather_2"), tool("get_weather")]):
        calls = ToolCallFormat(declared, "auto")
        for response in run(
            llm.engine,
            *(
                request(
                    prompt, 200, constraint=lazy_calls(compiler, calls), seed=i, temperature=0.7
                )
                for i in range(4)
            ),
        ):
            names = {t["function"]["name"] for t in declared}
            written = llm.tokenizer.decode(response.ids, skip_special=False)
            for call in parse_response(response.ids, llm.tokenizer).tool_calls:
                assert call.name in names
                assert f"{BEGIN}{call.id}{ARGUMENTS}" in written
                if response.end.reason == "stop":
                    assert isinstance(json.loads(call.arguments), dict)


def test_arguments_of_strict_tools_fit_their_schemas(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    strict = [tool("look_up", strict=True, parameters=parameters), tool("time-now")]
    for name, arguments, expected in (
        ("look_up", '{"n":1}', True),
        ("look_up", "{}", False),
        ("time-now", "{}", True),
    ):
        lazy = lazy_calls(compiler, ToolCallFormat(strict, "auto"))
        call = f"{BEGIN}functions.{name}:0{ARGUMENTS}{arguments}{END}"
        assert accepts(lazy, llm.tokenizer, call) == expected


def test_one_call_if_they_are_not_parallel(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    calls = ToolCallFormat(TOOLS, "auto", first_index=2, is_parallel=False)
    second = CALL.replace(":2", ":3")
    assert accepts(lazy_calls(compiler, calls), llm.tokenizer, f"{SECTION}{CALL}{SECTION_END}")
    assert not accepts(lazy_calls(compiler, calls), llm.tokenizer, f"{CALL}{second}")


class NoCalls:
    """A tokenizer without tool call tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def special_id(self, _name: str) -> None:
        return None


def test_a_vocabulary_without_call_tokens(llm: hybridmoe.LLM) -> None:
    compiler = GrammarCompiler(NoCalls(llm.tokenizer), None)  # type: ignore[arg-type]
    assert compiler.compile_lazy_calls(ToolCallFormat(TOOLS, "auto")) is None
    with pytest.raises(ConfigError, match="tool calls cannot be constrained: the vocabulary has"):
        compiler.compile_lazy_calls(ToolCallFormat([tool("f", strict=True)], "auto"))


def test_an_active_mask_is_that_of_the_grammar(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    lazy = lazy_calls(compiler)
    begin, section = (llm.tokenizer.special_id(mark) for mark in (BEGIN, SECTION))
    assert begin is not None and section is not None
    lazy.accept(section)
    allowed = np.unpackbits(lazy.mask().view(np.uint8), bitorder="little").nonzero()[0]
    assert allowed.tolist() == [begin]
    assert lazy.eos_redirect() is None

"""Results of the Python API: text, reasoning and calls apart, as in the endpoint."""

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine

import hybridmoe
from hybridmoe.engine.request import Usage
from hybridmoe.text.chat_encoding import ChatPrompt
from hybridmoe.text.lazy_tool_calls import LazyToolCalls

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CALL = "<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>"


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load() as llm:
        engine, llm.engine = llm.engine, FakeEngine(llm.tokenizer, 2048)  # type: ignore[assignment]
        yield llm
        llm.engine = engine


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"say {text}"}]


def test_thoughts_are_no_text(llm: hybridmoe.LLM) -> None:
    messages = say("<think>why°not</think>yes°no")
    result = llm.chat(messages)
    assert (result.text, result.reasoning) == ("yes°no", "why°not")
    stream = llm.chat(messages, stream=True)
    assert "".join(stream) == "yes°no"
    assert stream.result.reasoning == "why°not"
    pieces = list(llm.chat(messages, stream=True).pieces())
    assert "".join(piece.text for piece in pieces if piece.is_reasoning) == "why°not"
    assert "".join(piece.text for piece in pieces if not piece.is_reasoning) == "yes°no"
    assert pieces == sorted(pieces, key=lambda piece: not piece.is_reasoning)


def test_a_prompt_may_have_begun_the_thoughts(
    llm: hybridmoe.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = llm.chat_prompt(say("why</think>yes"))
    think = llm.tokenizer.special_id("<think>")
    assert think is not None
    begun = ChatPrompt([*prompt.ids, think], "open")
    monkeypatch.setattr(llm, "chat_prompt", lambda *_, **__: begun)
    result = llm.chat(say("why</think>yes"))
    assert (result.text, result.reasoning) == ("yes", "why")
    stream = llm.chat(say("why</think>yes"), stream=True)
    assert "".join(stream) == stream.result.text == "yes"
    assert stream.result.reasoning == "why"


def test_raw_text_keeps_its_marks_of_thoughts(llm: hybridmoe.LLM) -> None:
    result = llm.generate("say <think>why</think>yes")
    assert (result.text, result.reasoning) == ("<think>why</think>yes", "")


def test_calls_go_on_from_the_conversations_number(llm: hybridmoe.LLM) -> None:
    past = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up"}}]}
    both = CALL.format("functions.look_up:1", '{"a":1}') + CALL.format("look_up7", "")
    result = llm.chat([past, {"role": "tool", "content": "x"}, *say(f"Hm.{both}")], tools=TOOLS)
    assert (result.text, result.finish_reason) == ("Hm.", "tool_calls")
    assert result.tool_calls == [
        {
            "id": f"functions.look_up:{i}",
            "type": "function",
            "function": {"name": "look_up", "arguments": arguments},
        }
        for i, arguments in ((1, '{"a":1}'), (2, "{}"))
    ]


def test_what_is_not_declared_is_text(llm: hybridmoe.LLM) -> None:
    result = llm.chat(say(CALL.format("functions.nope:0", '{"a":1}')), tools=TOOLS)
    assert (result.text, result.tool_calls) == ('functions.nope:0{"a":1}', [])
    assert result.finish_reason == "stop"


def test_only_declared_tools_can_be_called(llm: hybridmoe.LLM) -> None:
    assert isinstance(llm.engine, FakeEngine)
    begin = llm.tokenizer.special_id("<|tool_call_begin|>")
    assert begin is not None
    llm.chat(say("x"), tools=TOOLS, logit_bias={5: 1.0})
    request = llm.engine.requests[-1]
    assert isinstance(request.constraint, LazyToolCalls)
    assert request.params.logit_bias == {5: 1.0}
    llm.chat(say("x"), logit_bias={5: 1.0})
    request = llm.engine.requests[-1]
    assert request.constraint is None
    assert request.params.logit_bias[5] == 1.0
    assert request.params.logit_bias[begin] == float("-inf")


def test_a_call_that_is_cut_off_cannot_be_called(llm: hybridmoe.LLM) -> None:
    whole = CALL.format("functions.look_up:0", '{"a":1}')
    messages = say(f"{whole}{whole}")
    num_tokens = len(llm.tokenizer.encode(whole, parse_special=True))
    for limit, num_calls in ((2 * num_tokens, 2), (2 * num_tokens - 3, 1), (num_tokens, 1)):
        result = llm.chat(messages, tools=TOOLS, max_tokens=limit)
        assert len(result.tool_calls) == num_calls
        assert [call["function"]["arguments"] for call in result.tool_calls] == [
            '{"a":1}'
        ] * num_calls


def test_a_stream_that_is_closed_has_what_was_said(llm: hybridmoe.LLM) -> None:
    stream = llm.chat(say("<think>a b c d</think>e f g"), stream=True)
    first = next(stream.pieces())
    assert first.is_reasoning
    stream.close()
    assert (stream.result.reasoning, stream.result.text) == (first.text, "")
    assert stream.result.finish_reason == "cancelled"
    assert list(stream) == list(stream.pieces()) == []


def test_figures_are_the_engines(llm: hybridmoe.LLM) -> None:
    timing = llm.chat(say("x")).timing
    usage = Usage(prompt_tokens=timing.prompt_tokens, prompt_s=0.1, decode_s=0.2)
    assert (timing.prompt_s, timing.decode_s) == (usage.prompt_s, usage.decode_s)

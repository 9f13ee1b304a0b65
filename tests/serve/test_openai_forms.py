"""OpenAI's own Python client: tools, reasoning, response formats, and the Responses API."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from endpoint_requests import CALL, WEATHER, City, user
from fake_engine import FakeLLM
from live_server import LiveServer, live_server

from hybridmoe.text.chat_template import ChatTemplate


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, model_aliases=("other",)) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_a_round_of_tools(client: openai.OpenAI, llm: FakeLLM) -> None:
    messages = user(f"say Let me look.{CALL}")
    answer = client.chat.completions.create(model="test", messages=messages, tools=[WEATHER])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me look."
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert re.fullmatch("[a-zA-Z0-9_-]+", call.id)
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    messages += [
        message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        *user(f"say {CALL}"),
    ]
    again = client.chat.completions.create(model="test", messages=messages, tools=[WEATHER])
    assert again.choices[0].message.content is None
    assert again.choices[0].message.tool_calls is not None
    assert again.choices[0].message.tool_calls[0].id != call.id
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert call.id not in prompt
    assert "## Return of functions.get_weather:0\nsunny<|im_end|>" in prompt


def test_foreign_ids_are_rewritten_before_the_model_sees_them(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    call = {"id": "call_abc", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        *user("a"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abc", "content": "9"},
    ]
    client.chat.completions.create(model="test", messages=messages)
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert "call_abc" not in prompt
    assert "## Return of functions.f:0\n9" in prompt


def test_streamed_tool_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="test", messages=user(f"say Hm.{CALL}{CALL}"), tools=[WEATHER]
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "Hm."
    calls = final.choices[0].message.tool_calls or []
    assert len({call.id for call in calls}) == 2
    assert all(re.fullmatch("[a-zA-Z0-9_-]+", call.id) for call in calls)
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Oslo"}] * 2


def test_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="test",
        messages=user(f"say {CALL}{CALL}"),
        tools=[WEATHER],
        parallel_tool_calls=False,
    )
    assert len(answer.choices[0].message.tool_calls or []) == 1
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("arguments", "is_bound"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, True),
    ],
)
def test_tool_choice(
    client: openai.OpenAI, llm: FakeLLM, arguments: dict[str, Any], is_bound: bool
) -> None:
    client.chat.completions.create(
        model="test", messages=user("say x"), tools=[WEATHER], **arguments
    )
    request = llm.engine.requests[-1]
    constraint = request.constraint
    assert (constraint is not None and not constraint.is_inactive()) == is_bound
    assert (constraint is None) == (arguments.get("tool_choice") == "none")
    section = llm.tokenizer.special_id("<|tool_calls_section_begin|>")
    assert section is not None
    is_forbidden = request.params.logit_bias.get(section) == float("-inf")
    assert is_forbidden == (arguments.get("tool_choice") == "none")


def test_thoughts_are_kept_apart(client: openai.OpenAI) -> None:
    messages = user("say <think>why not</think>yes")
    answer = client.chat.completions.create(model="test", messages=messages)
    message = answer.choices[0].message.to_dict()
    assert (message["reasoning_content"], message["content"]) == ("why not", "yes")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens
    stream = client.chat.completions.create(model="test", messages=messages, stream=True)
    deltas = [chunk.choices[0].delta.to_dict() for chunk in stream]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "why not"
    assert "".join(delta.get("content") or "" for delta in deltas) == "yes"


def test_typed_answers(client: openai.OpenAI, llm: FakeLLM) -> None:
    answer = client.chat.completions.parse(
        model="test", messages=user('say {"name":"Oslo","people":7}'), response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Oslo", people=7)
    assert llm.engine.requests[-1].constraint is not None


@pytest.mark.parametrize("may_think", [True, False])
def test_thoughts_may_come_before_a_form_where_the_template_knows_of_them(
    client: openai.OpenAI, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, may_think: bool
) -> None:
    if may_think:
        source = f"{llm.template.source}{{# <think> #}}"
        monkeypatch.setattr(llm, "template", ChatTemplate(source))
    client.chat.completions.create(
        model="test", messages=user("say {}"), response_format={"type": "json_object"}
    )
    constraint = llm.engine.requests[-1].constraint
    think = llm.tokenizer.special_id("<think>")
    assert constraint is not None
    assert think is not None
    assert bool(constraint.mask()[think // 32] >> (think % 32) & 1) == may_think


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="test", input="say <think>hm</think>Hi", instructions="Be brief."
    )
    assert (answer.status, answer.output_text) == ("completed", "Hi")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    cut = client.responses.create(model="test", input="count 9", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_streamed_responses_and_a_round_of_tools(client: openai.OpenAI, llm: FakeLLM) -> None:
    tool: Any = {"type": "function", "strict": False, **WEATHER["function"]}
    with client.responses.stream(model="test", input=f"say Hm.{CALL}", tools=[tool]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert final.output_text == "Hm."
    call = final.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    history: list[Any] = [
        *user("say x"),
        *[item.to_dict() for item in final.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        *user("say fine"),
    ]
    answer = client.responses.create(model="test", input=history, tools=[tool])
    assert answer.output_text == "fine"
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert re.fullmatch("[a-zA-Z0-9_-]+", call.call_id)
    assert call.call_id not in prompt
    assert "## Return of functions.get_weather:0\nsunny" in prompt
    assert f"assistant<|im_middle|>Hm.{CALL}" in prompt


def test_typed_responses(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="test", input='say {"name":"Oslo","people":7}', text_format=City
    )
    assert answer.output_parsed == City(name="Oslo", people=7)

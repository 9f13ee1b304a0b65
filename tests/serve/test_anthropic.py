"""Anthropic's own Python client against the endpoint, on the fake engine."""

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from endpoint_requests import CALL, user
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S

from hybridmoe.text.lazy_tool_calls import LazyToolCalls
from hybridmoe.text.matcher_constraint import MatcherConstraint

WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, api_keys=("secret",)) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as client:
        yield client


def test_a_whole_answer(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    answer = client.messages.create(
        model="test", max_tokens=50, messages=user("say Hi °é"), system="Be brief."
    )
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "Hi °é"}]
    assert (answer.role, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "end_turn",
        None,
    )
    prompt_ids = llm.engine.requests[-1].prompt_ids
    assert answer.usage.cache_read_input_tokens == 1
    assert answer.usage.input_tokens == len(prompt_ids) - 1
    prompt = llm.tokenizer.decode(prompt_ids, skip_special=False)
    assert "system<|im_middle|>Be brief.<|im_end|>" in prompt


def test_a_billing_header_is_no_part_of_the_prompt(
    client: anthropic.Anthropic, llm: FakeLLM
) -> None:
    def prompt_ids(*headers: str) -> list[int]:
        blocks: Any = [{"type": "text", "text": text} for text in (*headers, "Be brief.")]
        client.messages.create(model="test", max_tokens=50, messages=user("say Hi"), system=blocks)
        return llm.engine.requests[-1].prompt_ids

    plain = prompt_ids()
    assert prompt_ids("x-anthropic-billing-header: cch=0a1b2;") == plain
    assert prompt_ids("An x-anthropic-header is quoted.") != plain
    counted = client.messages.count_tokens(
        model="test",
        messages=user("say Hi"),
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=9f8e7;"},
            {"type": "text", "text": "Be brief."},
        ],
    )
    assert counted.input_tokens == len(plain)


@pytest.mark.parametrize(
    ("text", "options", "reason", "sequence"),
    [
        ("count 9", {"max_tokens": 3}, "max_tokens", None),
        ("say a stop b", {"stop_sequences": ["stop"]}, "stop_sequence", "stop"),
        (f"say {CALL}", {"tools": [WEATHER]}, "tool_use", None),
    ],
)
def test_how_an_answer_ends(
    client: anthropic.Anthropic, text: str, options: Any, reason: str, sequence: str | None
) -> None:
    arguments = {"model": "test", "max_tokens": 50, "messages": user(text), **options}
    answer = client.messages.create(**arguments)
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
    with client.messages.stream(**arguments) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == (reason, sequence)
    assert [b.to_dict() | {"id": ""} for b in streamed.content] == [
        b.to_dict() | {"id": ""} for b in answer.content
    ]


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="test", max_tokens=50, messages=user("say <think>hm</think>Hi there")
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[1].to_dict()["text"] == "Hi there"
    assert final.usage.output_tokens > 3


def test_a_round_of_tools(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    arguments: Any = {"model": "test", "max_tokens": 90, "tools": [WEATHER]}
    messages = user(f"say Let me look.{CALL}")
    with client.messages.stream(messages=messages, **arguments) as stream:
        answer = stream.get_final_message()
    text, call = answer.content
    assert text.type == "text"
    assert text.text == "Let me look."
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    assert re.fullmatch("toolu_[0-9a-f]{24}", call.id)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    text_block = {"type": "text", "text": "say fine"}
    messages += [
        {"role": "assistant", "content": [block.to_dict() for block in answer.content]},
        {"role": "user", "content": [result, text_block]},
    ]
    final = client.messages.create(messages=messages, **arguments)
    assert final.content[0].to_dict()["text"] == "fine"
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert "## Return of functions.get_weather:0\nsunny<|im_end|><|im_user|>user" in prompt


def test_arguments_that_json_cannot_hold(client: anthropic.Anthropic) -> None:
    call = CALL.replace('{"city":"Oslo"}', '{"a":1e999,"b":-1e5,"c":NaN}')
    answer = client.messages.create(
        model="test", max_tokens=50, messages=user(f"say {call}"), tools=[WEATHER]
    )
    assert answer.content[0].to_dict()["input"] == {"a": "1e999", "b": -1e5, "c": "NaN"}


def test_work_of_hosted_tools_is_text(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    found = {"type": "web_search_result", "title": "T", "url": "u", "encrypted_content": "xyz"}
    error = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    content = [
        {"type": "text", "text": "Let me see."},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "oslo"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [found]},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": error},
        {"type": "text", "text": "It rains."},
    ]
    document = {"type": "text", "media_type": "text/plain", "data": "The text."}
    asked = [
        {"type": "document", "title": "A title", "source": document},
        {"type": "text", "text": "say Hi"},
    ]
    messages: Any = [
        *user("a"), {"role": "assistant", "content": content}, {"role": "user", "content": asked}
    ]  # fmt: skip
    client.messages.create(model="test", max_tokens=9, messages=messages)
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    lines = [
        "Let me see.",
        '[server_tool_use {"name":"web_search","input":{"query":"oslo"}}]',
        '[web_search_tool_result {"content":[{"title":"T","url":"u"}]}]',
        '[web_search_tool_result {"content":{"error_code":"unavailable"}}]',
        "It rains.<|im_end|>",
    ]
    assert "\n".join(lines) in prompt
    assert "A title\nThe text.\nsay Hi<|im_end|>" in prompt


def test_a_picture_that_a_tool_returned_is_named_in_its_place(
    client: anthropic.Anthropic, llm: FakeLLM
) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    content = [{"type": "text", "text": "See:"}, picture]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}
    messages: Any = [
        *user("a"),
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    client.messages.create(model="test", max_tokens=9, messages=messages)
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert "See:\n[image: this model reads text only]<|im_end|>" in prompt
    with pytest.raises(anthropic.BadRequestError, match="'image'"):
        client.messages.create(
            model="test",
            max_tokens=9,
            messages=[{"role": "user", "content": [picture]}],  # type: ignore[list-item]
        )


def test_tool_choice(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    def constraint(choice: Any) -> object:
        client.messages.create(
            model="test",
            max_tokens=9,
            messages=user("say x"),
            tools=[WEATHER],
            tool_choice=choice,
        )
        return llm.engine.requests[-1].constraint

    assert isinstance(constraint({"type": "auto"}), LazyToolCalls)
    assert constraint({"type": "none"}) is None
    assert isinstance(constraint({"type": "any"}), MatcherConstraint)
    assert isinstance(constraint({"type": "tool", "name": "get_weather"}), MatcherConstraint)


def test_temperature_is_a_share_of_the_models_own(
    client: anthropic.Anthropic, llm: FakeLLM
) -> None:
    for given, real in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.6)):
        client.messages.create(
            model="test",
            max_tokens=9,
            messages=user("x"),
            extra_body={"temperature": given, "top_k": 3, "top_p": 0.5},
        )
        params = llm.engine.requests[-1].params
        assert params.temperature == pytest.approx(real)
        assert (params.top_k, params.top_p) == (3, 0.5)


def test_tokens_are_counted_as_the_prompt_is(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    arguments: Any = {"model": "test", "messages": user("say x"), "tools": [WEATHER]}
    count = client.messages.count_tokens(**arguments)
    client.messages.create(max_tokens=9, **arguments)
    assert count.input_tokens == len(llm.engine.requests[-1].prompt_ids)


def test_errors_have_anthropics_shape(client: anthropic.Anthropic) -> None:
    def failure(kind: type[anthropic.APIStatusError], **changes: Any) -> Any:
        arguments = {"model": "test", "max_tokens": 9, "messages": user("x"), **changes}
        with pytest.raises(kind) as caught:
            client.messages.create(**arguments)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["type"] == "error"
        return caught.value.body["error"]

    image = [{"type": "image", "source": {"type": "base64", "data": "", "media_type": "image/png"}}]
    found = failure(anthropic.BadRequestError, messages=[{"role": "user", "content": image}])
    assert found["type"] == "invalid_request_error"
    assert found["message"].startswith("messages[0].content[0].type: ")
    assert "'image' in a message of 'user'" in found["message"]
    found = failure(anthropic.BadRequestError, messages=user("x y z " * 1000))
    assert "prompt is too long" in found["message"]
    found = failure(anthropic.BadRequestError, extra_body={"thread": {"type": "create"}})
    assert found["details"]["error_code"] == "thread_unsupported_request"  # the client goes on then
    assert failure(anthropic.NotFoundError, model="absent")["type"] == "not_found_error"
    assert failure(anthropic.InternalServerError, messages=user("break"))["type"] == "api_error"
    with (
        client.messages.stream(model="test", max_tokens=9, messages=user("break")) as stream,
        pytest.raises(anthropic.APIStatusError, match="out of order"),
    ):
        stream.get_final_message()


def test_the_key_is_asked_for(server: LiveServer) -> None:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="API key is wrong"),
    ):
        client.messages.create(model="test", max_tokens=9, messages=user("x"))
    bearer = {"api_key": None, "auth_token": "secret", "max_retries": 0}
    with anthropic.Anthropic(base_url=server.url, **bearer) as client:  # type: ignore[arg-type]
        assert client.messages.create(model="test", max_tokens=9, messages=user("x")).content


def test_a_client_that_leaves_frees_its_sequence(client: anthropic.Anthropic, llm: FakeLLM) -> None:
    with client.messages.stream(model="test", max_tokens=900, messages=user("slow")) as stream:
        for event in stream:
            if event.type == "text":
                break
    assert llm.engine.tickets[-1].finished.wait(HANG_S)
    assert llm.engine.tickets[-1].cancelled.is_set()

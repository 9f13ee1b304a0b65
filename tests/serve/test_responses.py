"""The Responses API as its clients use it: tools of other kinds, items, stored responses."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from endpoint_requests import CALL, WEATHER, prompt, user
from fake_engine import FakeLLM
from live_server import LiveServer, live_server

SHELL: Any = {"type": "function", "strict": False, **WEATHER["function"]}


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, max_stored_responses=4) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, input: Any = "say Hi", **more: Any) -> Any:
    return client.responses.create(model="test", input=input, **more)


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "local_shell"},
        {"type": "image_generation", "output_format": "png"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "namespace", "name": "mcp__x", "tools": [SHELL]},
    ],
)
def test_tools_that_are_no_functions_are_skipped(
    client: openai.OpenAI, llm: FakeLLM, tool: Any
) -> None:
    alone = ask(client, tools=[tool])
    assert (alone.output_text, alone.tools) == ("Hi", [])
    assert "tool_declare" not in prompt(llm)
    beside = ask(client, f"say {CALL}", tools=[tool, SHELL])
    assert [t.name for t in beside.tools] == ["get_weather"]
    assert beside.output[-1].name == "get_weather"
    with pytest.raises(openai.BadRequestError, match="'required' without tools"):
        ask(client, tools=[tool], tool_choice="required")


def test_only_the_allowed_functions_are_shown(client: openai.OpenAI, llm: FakeLLM) -> None:
    choice: Any = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "get_weather"}, {"type": "web_search"}],
    }
    ask(client, tools=[SHELL, {**SHELL, "name": "get_time"}], tool_choice=choice)
    assert "get_weather" in prompt(llm)
    assert "get_time" not in prompt(llm)


def test_calls_of_other_tools_are_read_as_functions(client: openai.OpenAI, llm: FakeLLM) -> None:
    items: Any = [
        *user("a"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        {"type": "local_shell_call", "call_id": "d", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "d", "output": {"exit": 0}},
        *user("say Hi"),
    ]
    assert ask(client, items).output_text == "Hi"
    begin, arguments, end = (f"<|tool_call_{m}|>" for m in ("begin", "argument_begin", "end"))
    assert f'{begin}functions.apply_patch:0{arguments}{{"input":"x"}}{end}' in prompt(llm)
    assert "## Return of functions.apply_patch:0\ndone<|im_end|>" in prompt(llm)
    action = '{"action":{"command":["ls"]}}'
    assert f"{begin}functions.local_shell:1{arguments}{action}{end}" in prompt(llm)
    assert '## Return of functions.local_shell:1\n{"exit":0}<|im_end|>' in prompt(llm)


def test_work_of_hosted_tools_is_text_of_the_message_that_follows(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    action = {"type": "search", "query": "oslo", "sources": []}
    items: Any = [
        *user("a"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action},
        {"type": "image_generation_call", "id": "ig_1", "result": "iVBORw0KGgo="},
        {"type": "message", "role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "Bye."},
        {"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": []},
        *user("say Hi"),
    ]
    assert ask(client, items).output_text == "Hi"
    searched = '[web_search_call {"action":{"query":"oslo"}}]\n[image_generation_call]\nIt rains.'
    assert f"{searched}<|im_end|>" in prompt(llm)
    assert "Bye.<|im_end|>" in prompt(llm)
    assert "iVBOR" not in prompt(llm) and "mcp_list" not in prompt(llm)


def test_a_picture_that_a_tool_returned_is_named_in_its_place(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    output = [
        {"type": "input_text", "text": "See: "},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
    ]
    items: Any = [
        *user("a"),
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": output},
    ]
    ask(client, items)
    assert "See: [input_image: this model reads text only]<|im_end|>" in prompt(llm)
    with pytest.raises(openai.BadRequestError, match="input_image"):
        ask(client, [{"role": "user", "content": output}])
    with pytest.raises(openai.BadRequestError, match="'additional_tools'; supported"):
        ask(client, [{"type": "additional_tools", "tools": []}])


@pytest.mark.parametrize("streams", [False, True])
def test_a_conversation_goes_on_from_a_stored_response(
    client: openai.OpenAI, llm: FakeLLM, streams: bool
) -> None:
    def answer(input: Any, **more: Any) -> Any:
        if not streams:
            return ask(client, input, **more)
        *_, last = ask(client, input, stream=True, **more)
        assert last.type == "response.completed"
        return last.response

    first = answer(f"say {CALL}", tools=[SHELL], instructions="Be brief.")
    assert (first.store, first.previous_response_id) == (True, None)
    result = {
        "type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain",
    }  # fmt: skip
    second = answer([result], previous_response_id=first.id, tools=[SHELL])
    assert second.previous_response_id == first.id
    assert "Be brief." not in prompt(llm)
    third = answer("say Hi", previous_response_id=second.id)
    assert third.output[0].content[0].text == "Hi"
    text = prompt(llm)
    assert f"<|im_end|><|im_assistant|>assistant<|im_middle|>{CALL}" in text
    assert "## Return of functions.get_weather:0\nrain<|im_end|>" in text
    assert text.endswith("say Hi<|im_end|><|im_assistant|>assistant<|im_middle|>")


def test_items_are_referred_to(client: openai.OpenAI, llm: FakeLLM) -> None:
    first = ask(client, "say one two")
    reference = {"type": "item_reference", "id": first.output[0].id}
    ask(client, [*user("a"), reference, *user("say Hi")])
    assert "<|im_assistant|>assistant<|im_middle|>one two<|im_end|>" in prompt(llm)
    ask(client, [*user("a"), {"id": first.output[0].id}, *user("say Hi")])
    assert "<|im_assistant|>assistant<|im_middle|>one two<|im_end|>" in prompt(llm)
    with pytest.raises(openai.BadRequestError, match="Item with id 'msg_1' not found"):
        ask(client, [*user("a"), {**reference, "id": "msg_1"}])


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    kept, other = ask(client), ask(client, store=False)
    assert (kept.store, other.store) == (True, False)
    assert client.responses.retrieve(kept.id) == kept
    with pytest.raises(openai.NotFoundError, match=f"Response with id '{other.id}' not found"):
        client.responses.retrieve(other.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, previous_response_id=other.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"
    reference = {"type": "item_reference", "id": other.output[0].id}
    with pytest.raises(openai.BadRequestError, match="not found"):
        ask(client, [reference])


def test_stored_responses_are_deleted_and_forgotten(client: openai.OpenAI) -> None:
    first = ask(client)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    second = ask(client)
    for _ in range(4):
        ask(client)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_an_empty_input_and_truncation(client: openai.OpenAI, llm: FakeLLM) -> None:
    assert ask(client, [], max_output_tokens=1).status == "incomplete"
    assert prompt(llm).count("<|im_user|>") == 1
    assert ask(client, truncation="auto").output_text == "Hi"
    assert ask(client, [{"role": "user", "content": None}], max_output_tokens=1).output

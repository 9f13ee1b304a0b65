"""Thinking and prefill in every API: what reaches the template, and what is refused by name."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from endpoint_requests import CALL, WEATHER, user
from fake_engine import FakeLLM
from live_server import live_server
from thinking_templates import ALWAYS, EFFORT, OPENS
from waiting import HANG_S

from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.thinking_budget import ThinkingBudget
from hybridmoe.text.thinking_options import ThinkingOptions

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": user("say Hi")},
    RESPONSES: {"input": "say Hi"},
    MESSAGES: {"model": "test", "max_tokens": 9, "messages": user("say Hi")},
}


@pytest.fixture(scope="module")
def http(llm: FakeLLM) -> Iterator[httpx2.Client]:
    with live_server(llm) as server, httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture
def use(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda source: monkeypatch.setattr(llm, "template", ChatTemplate(source))


def post(http: httpx2.Client, path: str, **fields: Any) -> httpx2.Response:
    return http.post(path, json={**BODIES[path], **fields})


def last_prompt(llm: FakeLLM) -> str:
    return llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)


@pytest.mark.parametrize(
    ("path", "fields", "is_on"),
    [
        (CHAT, {}, True),
        (CHAT, {"chat_template_kwargs": {"thinking": False}}, False),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (CHAT, {"enable_thinking": False}, False),
        (CHAT, {"enable_thinking": False, "reasoning_effort": "high"}, False),
        (CHAT, {"thinking": {"type": "disabled"}}, False),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 9}}, True),
        (CHAT, {"thinking": False}, False),
        (CHAT, {"think": False}, False),
        (CHAT, {"think": "low"}, True),
        (CHAT, {"reasoning_effort": "none"}, False),
        (CHAT, {"reasoning_effort": "medium"}, True),
        (CHAT, {"reasoning": {"enabled": False}}, False),
        (CHAT, {"reasoning": {"effort": "none"}}, False),
        (RESPONSES, {"reasoning": {"effort": "none", "summary": "auto"}}, False),
        (RESPONSES, {"reasoning": {"effort": "medium"}}, True),
        (RESPONSES, {"chat_template_kwargs": {"thinking": False}}, False),
        (MESSAGES, {"thinking": {"type": "disabled"}}, False),
        (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}}, True),
        (MESSAGES, {"chat_template_kwargs": {"thinking": False}}, False),
    ],
)
def test_every_dialect_switches_thinking(
    http: httpx2.Client, llm: FakeLLM, use: Any, path: str, fields: dict[str, Any], is_on: bool
) -> None:
    use(OPENS)
    answer = post(http, path, **fields)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    assert last_prompt(llm).endswith("<think>" if is_on else "<think></think>")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"reasoning_effort": "high"}),
        (RESPONSES, {"reasoning": {"effort": "high"}}),
        (MESSAGES, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
    ],
)
def test_a_level_reaches_a_template_that_has_levels(
    http: httpx2.Client, llm: FakeLLM, use: Any, path: str, fields: dict[str, Any]
) -> None:
    use(EFFORT)
    assert post(http, path, **fields).status_code == 200
    assert last_prompt(llm).startswith("Reasoning: high\n")


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"enable_thinking": False}, "enable_thinking"),
        (CHAT, {"reasoning_effort": "none"}, "reasoning_effort"),
        (RESPONSES, {"reasoning": {"effort": "none"}}, "reasoning.effort"),
        (MESSAGES, {"thinking": {"type": "disabled"}}, "thinking"),
        (CHAT, {"chat_template_kwargs": {"style": 1}}, "chat_template_kwargs"),
        (MESSAGES, {"preserve_thinking": True}, "preserve_thinking"),
    ],
)
def test_a_switch_that_the_model_lacks_is_named(
    http: httpx2.Client, use: Any, path: str, fields: dict[str, Any], named: str
) -> None:
    use(ALWAYS)
    answer = post(http, path, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"reasoning_effort": "medium"}),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (RESPONSES, {"reasoning": {"effort": "medium", "summary": "auto"}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 31999}}),
    ],
)
def test_what_agents_send_unasked_breaks_no_model_that_does_not_think(
    http: httpx2.Client, path: str, fields: dict[str, Any]
) -> None:
    answer = post(http, path, **fields)
    assert answer.status_code == 200
    named = answer.headers["x-ignored-fields"]
    assert named in ("reasoning_effort", "thinking", "reasoning.effort")
    assert post(http, CHAT, enable_thinking=True).status_code == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 3}}),
        (CHAT, {"thinking_budget": 3, "n": 2, "tools": [WEATHER]}),
        (CHAT, {"thinking_budget_tokens": 3, "tools": [WEATHER], "tool_choice": "required"}),
        (CHAT, {"thinking_token_budget": 3, "response_format": {"type": "json_object"}}),
        (CHAT, {"reasoning_budget": 3}),
        (RESPONSES, {"reasoning": {"max_tokens": 3}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ],
)
def test_a_budget_limits_each_choice(
    http: httpx2.Client, llm: FakeLLM, use: Any, path: str, fields: dict[str, Any]
) -> None:
    use(OPENS)
    assert post(http, path, **fields).status_code == 200
    close = llm.tokenizer.special_id("</think>") or 0
    made = [request.constraint for request in llm.engine.requests[-fields.get("n", 1) :]]
    assert len({id(constraint) for constraint in made}) == len(made)
    for constraint in made:
        assert isinstance(constraint, ThinkingBudget)
        for _ in range(3):
            constraint.accept(llm.tokenizer.encode("a")[0])
        assert np_ids(constraint) == [close]
    assert post(http, path).status_code == 200
    assert not isinstance(llm.engine.requests[-1].constraint, ThinkingBudget)


def np_ids(constraint: ThinkingBudget) -> list[int]:
    mask = constraint.mask()
    return [i for i in range(32 * len(mask)) if int(mask[i // 32]) >> (i % 32) & 1]


def test_reasoning_tokens_are_those_between_the_marks(http: httpx2.Client) -> None:
    answer = post(http, CHAT, messages=user("say <think>one two</think>three")).json()
    num_thoughts = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    alone = post(http, CHAT, messages=user("say one two")).json()["usage"]["completion_tokens"]
    assert num_thoughts == alone


@pytest.mark.parametrize(
    ("path", "fields", "is_continued"),
    [
        (CHAT, {}, True),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": False}, True),
        (CHAT, {"add_generation_prompt": False}, True),
        (CHAT, {"add_generation_prompt": True}, False),
        (CHAT, {"continue_final_message": False}, False),
        (MESSAGES, {}, True),
    ],
)
def test_an_assistants_last_message_is_continued(
    http: httpx2.Client, llm: FakeLLM, path: str, fields: dict[str, Any], is_continued: bool
) -> None:
    messages = [*user("say Hi"), {"role": "assistant", "content": "Well, "}]
    answer = post(http, path, messages=messages, **fields)
    assert answer.status_code == 200, answer.text
    turn = "<|im_assistant|>assistant<|im_middle|>"
    end = f"{turn}Well, " if is_continued else f"Well, <|im_end|>{turn}"
    assert last_prompt(llm).endswith(end)
    body = answer.json()
    text = body["choices"][0]["message"]["content"] if path == CHAT else body["content"][0]["text"]
    assert text == "Hi"


@pytest.mark.parametrize("flag", ["prefix", "partial"])
def test_a_message_marked_as_begun_is_continued(
    http: httpx2.Client, llm: FakeLLM, flag: str
) -> None:
    last = {"role": "assistant", "content": "Well", flag: True}
    answer = post(http, CHAT, messages=[*user("say Hi"), last])
    assert answer.status_code == 200
    assert last_prompt(llm).endswith("Well")


def test_thoughts_are_continued_as_thoughts(http: httpx2.Client, llm: FakeLLM, use: Any) -> None:
    use(OPENS)
    thinking = [{"type": "thinking", "thinking": "Hm, ", "signature": ""}]
    messages = [*user("say so</think>Hi"), {"role": "assistant", "content": thinking}]
    answer = post(http, MESSAGES, messages=messages).json()
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    assert last_prompt(llm).endswith("<think>Hm, ")
    last = {"role": "assistant", "content": None, "reasoning_content": "Hm, "}
    message = post(http, CHAT, messages=[*user("say so</think>Hi"), last]).json()
    found = message["choices"][0]["message"]
    assert (found["reasoning_content"], found["content"]) == ("so", "Hi")


def test_a_format_is_continued_where_the_text_has_come_to(
    http: httpx2.Client, llm: FakeLLM
) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [*user("say 1}"), {"role": "assistant", "content": '{"a":'}]
    assert post(http, CHAT, messages=messages, response_format=form).status_code == 200
    constraint: Any = llm.engine.requests[-1].constraint
    one, letter = (llm.tokenizer.encode(text)[0] for text in ("1", "b"))
    mask = constraint.mask()
    assert int(mask[one // 32]) >> (one % 32) & 1
    assert not int(mask[letter // 32]) >> (letter % 32) & 1
    messages[-1]["content"] = '{"b":'
    answer = post(http, CHAT, messages=messages, response_format=form)
    assert answer.status_code == 400
    assert "not the beginning of a text of response_format" in answer.json()["error"]["message"]


def test_calls_may_follow_a_begun_message(http: httpx2.Client) -> None:
    messages = [*user(f"say ok.{CALL}"), {"role": "assistant", "content": "Let me look: "}]
    answer = post(http, CHAT, messages=messages, tools=[WEATHER]).json()["choices"][0]["message"]
    assert answer["content"] == "ok."
    assert answer["tool_calls"][0]["function"]["name"] == "get_weather"
    required = {"tools": [WEATHER], "tool_choice": "required"}
    form = {"response_format": {"type": "json_object"}}  # of a text, which calls take the place of
    assert post(http, CHAT, messages=messages, **required, **form).status_code == 200


@pytest.mark.parametrize(
    ("messages", "fields", "message"),
    [
        (user("x"), {"continue_final_message": True}, "continue_final_message: the last message"),
        (user("x"), {"add_generation_prompt": False}, "add_generation_prompt: false is supported"),
        (
            user("x"), {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message: excludes add_generation_prompt",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_named(
    http: httpx2.Client, messages: list[Any], fields: dict[str, Any], message: str
) -> None:
    answer = post(http, CHAT, messages=messages, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_the_server_has_a_default_for_requests_without_a_switch(llm: FakeLLM, use: Any) -> None:
    default = ThinkingOptions(mode="off", budget_tokens=5)
    with (
        live_server(llm, thinking=default) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
    ):
        use(OPENS)
        assert post(http, CHAT).status_code == 200
        assert last_prompt(llm).endswith("<think></think>")
        assert isinstance(llm.engine.requests[-1].constraint, ThinkingBudget)
        for fields in ({"think": True}, {"chat_template_kwargs": {"thinking": True}}):
            assert post(http, CHAT, **fields).status_code == 200
            assert last_prompt(llm).endswith("<think>")
        use(ALWAYS)
        assert post(http, CHAT).status_code == 200

"""Jobs of Anthropic's Python client: what its README and guides show."""

import json
import threading
from typing import Any

import anthropic
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, URL, WEATHER_SCHEMA, Sum, fails, job, run

client = Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
TOOL: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": WEATHER_SCHEMA,
}
PNG = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def options(text: str | list[Any], extra_body: Any = None, **more: Any) -> Any:
    """Arguments of a greedy request; this client names no temperature."""
    messages = user(text) if isinstance(text, str) else text
    body = {"temperature": 0.0, **(extra_body or {})}
    return {"model": MODEL, "max_tokens": 60, "messages": messages, "extra_body": body, **more}


def ask(text: str | list[Any], **more: Any) -> Any:
    return client.messages.create(**options(text, **more))


def result(call: Any, content: Any = RESULT, **more: Any) -> list[Any]:
    return user([{"type": "tool_result", "tool_use_id": call.id, "content": content, **more}])


def all_tokens(usage: Any) -> int:
    return int(usage.input_tokens + (usage.cache_read_input_tokens or 0))


@job
def asks() -> None:
    answer = ask(SUM)
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    (block,) = answer.content
    assert block.text.endswith("85"), answer
    assert answer.usage.output_tokens > 3


@job
def asks_over_several_turns() -> None:
    messages = user("My name is Bokira.")
    messages.append({"role": "assistant", "content": ask(messages).content})
    answer = ask([*messages, *user("What is my name?")])
    assert "Bokira" in answer.content[0].text, answer


@job
def obeys_a_system_prompt() -> None:
    blocks = [
        {"type": "text", "text": "Answer in capital letters."},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]
    plain, blocky = ask(SUM, system="Answer in capital letters."), ask(SUM, system=blocks)
    assert all_tokens(plain.usage) > all_tokens(ask(SUM).usage)
    assert all_tokens(blocky.usage) > all_tokens(plain.usage)


@job
def reads_the_cache() -> None:
    system: Any = [
        {"type": "text", "text": "Be kind. " * 40, "cache_control": {"type": "ephemeral"}}
    ]
    ask("Hello!", system=system)
    usage = ask(SUM, system=system).usage
    assert usage.cache_read_input_tokens > 80 and usage.input_tokens < 40, usage


@job
def streams_text() -> None:
    with client.messages.stream(**options(SUM)) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 3 and "".join(pieces).endswith("85")
    assert final.stop_reason == "end_turn" and final.usage.output_tokens > 3


@job
def streams_raw_events() -> None:
    kinds = [event.type for event in ask(SUM, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds


@job
async def asks_asynchronously() -> None:
    async with AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0) as other:
        answer: Any = await other.messages.create(**options(SUM))
        assert answer.content[0].text.endswith("85")
        async with other.messages.stream(**options(SUM)) as stream:
            assert (await stream.get_final_text()) == answer.content[0].text


@job
def uses_a_tool() -> None:
    first = ask(ASK_WEATHER, tools=[TOOL])
    assert first.stop_reason == "tool_use"
    (call,) = (block for block in first.content if block.type == "tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    history = [*user(ASK_WEATHER), {"role": "assistant", "content": first.content}]
    final = ask([*history, *result(call)], tools=[TOOL])
    assert "foggy" in final.content[0].text, final


@job
def streams_a_tools_input() -> None:
    with client.messages.stream(**options(ASK_WEATHER, tools=[TOOL])) as stream:
        deltas = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(deltas)) == {"city": "Oslo"}
    assert final.stop_reason == "tool_use"


@job
def lets_the_runner_call_tools() -> None:
    seen = []

    @beta_tool(description="Get the weather in a city", input_schema=WEATHER_SCHEMA)
    def get_weather(city: str) -> str:
        seen.append(city)
        return RESULT

    final = client.beta.messages.tool_runner(
        tools=[get_weather], **options(ASK_WEATHER)
    ).until_done()
    assert seen == ["Oslo"]
    assert "foggy" in final.content[0].text, final  # type: ignore[union-attr]


@job
def requires_a_tool() -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = ask(ASK_WEATHER, tools=[TOOL], tool_choice=choice)
        assert answer.content[-1].name == "get_weather"
    once = {"type": "any", "disable_parallel_tool_use": True}
    calls = [b for b in ask(ASK_WEATHER, tools=[TOOL], tool_choice=once).content]
    assert sum(block.type == "tool_use" for block in calls) == 1


@job
def forbids_tools() -> None:
    answer = ask(ASK_WEATHER, tools=[TOOL], tool_choice={"type": "none"})
    assert [block.type for block in answer.content] == ["text"]


@job
def tells_of_a_tools_failure() -> None:
    first = ask(ASK_WEATHER, tools=[TOOL])
    history = [*user(ASK_WEATHER), {"role": "assistant", "content": first.content}]
    parts = [{"type": "text", "text": "no such city"}]
    final = ask([*history, *result(first.content[-1], parts, is_error=True)], tools=[TOOL])
    assert final.stop_reason == "end_turn"
    assert final.content[0].text


@job
def reads_on_when_a_tool_returned_an_image() -> None:
    first = ask(ASK_WEATHER, tools=[TOOL])
    history = [*user(ASK_WEATHER), {"role": "assistant", "content": first.content}]
    parts = [{"type": "text", "text": RESULT}, {"type": "image", "source": PNG}]
    final = ask([*history, *result(first.content[-1], parts)], tools=[TOOL])
    assert final.content[0].text


@job
def continues_a_prefilled_answer() -> None:
    history = [*user(SUM), {"role": "assistant", "content": "47+38: 7+8=15, 4+3"}]
    answer = ask(history)
    assert answer.content[0].text.startswith("+1=8"), answer
    assert answer.content[0].text.endswith("85")


@job
def stops_at_a_string() -> None:
    answer = ask(SUM, stop_sequences=["4+3"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "4+3")
    assert "4+3" not in answer.content[0].text


@job
def stops_at_max_tokens() -> None:
    answer = ask(SUM, max_tokens=3)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)


@job
def samples() -> None:
    answer = ask(SUM, extra_body={"temperature": 1.0, "top_k": 1})
    assert answer.content[0].text == ask(SUM).content[0].text
    assert ask("Hello!", extra_body={"temperature": 0.5, "top_p": 0.9}).content[0].text


@job
def counts_tokens() -> None:
    count = client.messages.count_tokens(
        model=MODEL, messages=user(ASK_WEATHER), tools=[TOOL], system="Be brief."
    )
    answer = ask(ASK_WEATHER, tools=[TOOL], system="Be brief.")
    assert count.input_tokens == all_tokens(answer.usage)
    bare = client.messages.count_tokens(model=MODEL, messages=user(ASK_WEATHER))
    assert bare.input_tokens < count.input_tokens


@job
def parses_an_answer() -> None:
    answer = client.messages.parse(**options(SUM), output_format=Sum)
    assert isinstance(answer.parsed_output, Sum), answer


@job
def answers_by_schema() -> None:
    schema = {**Sum.model_json_schema(), "additionalProperties": False}
    answer = ask(SUM, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(answer.content[0].text).keys() == {"first", "second"}


@job
def uses_beta_features() -> None:
    answer: Any = client.beta.messages.create(
        **options(SUM),
        betas=["interleaved-thinking-2025-05-14", "fine-grained-tool-streaming-2025-05-14"],
        metadata={"user_id": "someone"},
        service_tier="auto",
    )
    assert answer.content[0].text.endswith("85")


@job
def keeps_thoughts_in_the_history() -> None:
    thoughts = {"type": "thinking", "thinking": "I add them.", "signature": "c2ln"}
    blocks = [thoughts, {"type": "text", "text": "47+38: 7+8=15, 4+3+1=8, 85"}]
    history = [*user(SUM), {"role": "assistant", "content": blocks}, *user("What is 12 + 34?")]
    assert ask(history, thinking={"type": "disabled"}).content[0].text.endswith("46")


@job
def reads_text_documents() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "My name is Bokira."}
    content = [{"type": "document", "source": source}, {"type": "text", "text": "What is my name?"}]
    with_it = ask(user(content))
    assert all_tokens(with_it.usage) > all_tokens(ask("What is my name?").usage) + 4


@job
def lists_and_retrieves_models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.type) == (MODEL, "model")
    assert model.display_name and model.created_at.year > 2000


@job
def reads_headers_and_raw_answers() -> None:
    raw = client.messages.with_raw_response.create(**options(SUM))
    assert raw.headers["request-id"]
    assert raw.parse()._request_id == raw.headers["request-id"]


@job
def says_what_is_not_found_or_not_allowed() -> None:
    error = fails(anthropic.NotFoundError, lambda: ask(SUM, model="claude-9"))
    assert error.body["error"]["type"] == "not_found_error"
    with Anthropic(base_url=URL, api_key="wrong", max_retries=0) as stranger:
        error = fails(
            anthropic.AuthenticationError, lambda: stranger.messages.create(**options(SUM))
        )
    assert error.body["error"]["type"] == "authentication_error"


@job
def says_what_is_wrong_in_a_request() -> None:
    error = fails(anthropic.BadRequestError, lambda: ask(SUM, extra_body={"temperature": 1.5}))
    assert error.body["error"]["type"] == "invalid_request_error"
    assert "temperature" in error.message
    error = fails(anthropic.BadRequestError, lambda: ask(user([{"type": "image", "source": PNG}])))
    assert "image" in error.message
    remote = [{"type": "url", "url": "https://example.org/mcp", "name": "x"}]
    error = fails(anthropic.BadRequestError, lambda: ask(SUM, extra_body={"mcp_servers": remote}))
    assert "mcp_servers" in error.message


@job
def says_that_the_prompt_is_too_long() -> None:
    error = fails(anthropic.BadRequestError, lambda: ask("word " * 1500))
    assert "prompt is too long" in error.message
    assert error.body["error"]["type"] == "invalid_request_error"


@job
def gives_up_in_time_and_goes_on() -> None:
    endless = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
    fails(anthropic.APITimeoutError, lambda: ask("Hello!", timeout=0.05, **endless))
    stream = ask("Hello!", stream=True, **endless)
    next(iter(stream))
    stream.close()
    assert ask(SUM).content[0].text.endswith("85")


@job
def is_told_to_come_back() -> None:
    refused: list[anthropic.RateLimitError] = []

    def ask_long() -> None:
        try:
            ask("Hello!", max_tokens=400, extra_body={"ignore_eos": True})
        except anthropic.RateLimitError as error:
            refused.append(error)

    crowd = [threading.Thread(target=ask_long) for _ in range(24)]  # 4 run, 8 wait
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert refused and all(int(error.response.headers["retry-after"]) > 0 for error in refused)
    assert {error.body["error"]["type"] for error in refused} == {"rate_limit_error"}


run()

"""The endpoint on the embedded model: responses, calls and schemas, with many clients at once."""

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from engine_run import request
from live_server import LiveServer, live_server
from pydantic import BaseModel, Field
from waiting import HANG_S, eventually

import hybridmoe

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
NAMES = ["".join(letters) for letters in itertools.product("BDGK", "aeio", ("ra", "nu"))]


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(context_tokens=1024, kv_tokens=8192, max_running=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: hybridmoe.LLM) -> Iterator[LiveServer]:
    with live_server(llm) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": text}]
    arguments = {"temperature": 0.0, "max_tokens": 60, **options}
    return client.chat.completions.create(model="test", messages=messages, **arguments)


def test_it_answers_the_same_as_the_library(client: openai.OpenAI, llm: hybridmoe.LLM) -> None:
    question = "What is 47 + 38?"
    answer = ask(client, question)
    text = answer.choices[0].message.content
    assert text.endswith("85")
    assert answer.choices[0].finish_reason == "stop"
    assert text == llm.chat([{"role": "user", "content": question}], temperature=0.0).text
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, question, stream=True)]
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 3


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_a_bias_that_forbids_what_the_form_wants_is_refused(
    client: openai.OpenAI, options: Any
) -> None:
    banned = {str(i): -100 for i in range(1024)}  # all digits, too
    digits = {"type": "regex", "pattern": "[0-9]{3}"}
    with pytest.raises(openai.BadRequestError, match="no token is left"):
        ask(client, "Hello", logit_bias=banned, response_format=digits, **options)


def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "My name is Bokira. " + "Hello. " * 30}]
    options: Any = {"model": "test", "max_tokens": 20, "temperature": 0.0}
    first = client.chat.completions.create(messages=messages, **options)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What is my name?"},
    ]
    second = client.chat.completions.create(messages=messages, **options)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 16
    assert "Bokira" in (second.choices[0].message.content or "")


def test_a_full_round_of_tools(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    arguments: Any = {"model": "test", "temperature": 0.0, "max_tokens": 80, "tools": [WEATHER]}
    answer = client.chat.completions.create(messages=messages, **arguments).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky":"foggy","temp":7}'}
    messages += [answer.message.to_dict(), result]
    final = client.chat.completions.create(messages=messages, **arguments).choices[0]
    assert final.finish_reason == "stop"
    assert "foggy" in (final.message.content or "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "zap"}}])
def test_calls_that_are_asked_for_are_valid_by_construction(
    client: openai.OpenAI, choice: Any
) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "zap",
            "parameters": {
                "type": "object",
                "properties": {
                    "level": {"type": "integer", "minimum": 1, "maximum": 9},
                    "colour": {"enum": ["red", "blue"]},
                },
                "required": ["level", "colour"],
                "additionalProperties": False,
            },
        },
    }
    # At a temperature at which the model writes nonsense, for which no one has trained it.
    answer = ask(
        client, "Hello!", tools=[tool], tool_choice=choice, temperature=1.5, seed=3,
        max_tokens=200, parallel_tool_calls=False,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "zap"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"level", "colour"}
    assert arguments["level"] in range(1, 10)
    assert arguments["colour"] in ("red", "blue")


class City(BaseModel):
    name: str = Field(max_length=12)  # the model does not know when a string should end
    is_large: bool


def test_answers_by_schema_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="test",
        messages=[{"role": "user", "content": "Describe Oslo."}],
        response_format=City,
        max_tokens=200,
        temperature=0.0,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, City)
    digits = ask(
        client, "Hello!", extra_body={"response_format": {"type": "regex", "pattern": "[0-9]{5}"}}
    )
    assert digits.choices[0].message.content.isdecimal()
    with pytest.raises(openai.BadRequestError, match="regex"):
        ask(client, "x", extra_body={"response_format": {"type": "regex", "pattern": "("}})


def test_with_tools_and_a_schema_it_calls_or_answers_by_the_schema(client: openai.OpenAI) -> None:
    city = {**City.model_json_schema(), "additionalProperties": False}
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": city}}
    options: Any = {"tools": [WEATHER], "response_format": schema, "max_tokens": 200}
    called = ask(client, "What is the weather in Oslo?", **options).choices[0]
    assert called.finish_reason == "tool_calls"
    assert json.loads(called.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    answered = ask(client, "Hello!", **options).choices[0]
    assert answered.finish_reason == "stop"
    assert not answered.message.tool_calls
    assert City.model_validate_json(answered.message.content)


def test_logprobs_are_those_of_the_chosen_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, "What is 12 + 34?", logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    for entry in entries:
        assert entry.logprob <= 0.0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)


def test_bad_token_ids_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        ask(client, "x", logit_bias={"99999999": 1})
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        client.completions.create(model="test", prompt=[10**8])


def test_anthropics_client_too(server: LiveServer) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "What is 47 + 38?"}]
        arguments: Any = {"model": "test", "max_tokens": 60, "extra_body": {"temperature": 0.0}}
        with client.messages.stream(messages=messages, **arguments) as stream:
            text = "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason == "end_turn"
        assert text.endswith("85")


@pytest.mark.usefixtures("exact_kernels")
def test_sixty_four_greedy_clients_get_what_each_gets_alone(
    client: openai.OpenAI, llm: hybridmoe.LLM
) -> None:
    questions = [f"What is {a} + {a + 7}?" for a in range(11, 43)]
    questions += [f"My name is {name}. Spell {name * 2}." for name in NAMES]
    with hybridmoe.load(context_tokens=256, kv_tokens=256) as lone:
        alone = [
            lone.chat([{"role": "user", "content": text}], temperature=0.0, max_tokens=32).text
            for text in questions
        ]
    together: dict[int, str] = {}

    def one(i: int) -> None:
        chunks = ask(client, questions[i], stream=True, max_tokens=32)
        together[i] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
    held_up, all_wait = threading.Event(), threading.Event()

    def hold_up(_: object) -> None:
        held_up.set()
        all_wait.wait(HANG_S)

    llm.engine.submit(request([1], 1), hold_up)
    eventually(held_up.is_set)  # else its step could admit a client, too
    try:
        for thread in threads:
            thread.start()
        eventually(lambda: llm.engine.stats().waiting == 64)
    finally:
        all_wait.set()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(64)] == alone
    assert all(alone[i].endswith(str(2 * a + 7)) for i, a in enumerate(range(11, 17)))


def test_clients_that_leave_free_their_pages(client: openai.OpenAI, llm: hybridmoe.LLM) -> None:
    bias = {str(token_id): -100 for token_id in llm.tokenizer.eos_ids}
    streams = [
        ask(client, "Hello!", max_tokens=900, logit_bias=bias, stream=True) for _ in range(6)
    ]
    eventually(lambda: llm.engine.stats().running == 6)
    for stream in streams:
        stream.close()
    eventually(lambda: llm.engine.stats().running == 0)
    stats = llm.engine.stats()
    assert (stats.waiting, stats.kv_pages_used) == (0, 0)


def test_experts_are_named_layer_by_layer(client: openai.OpenAI, llm: hybridmoe.LLM) -> None:
    stream = ask(client, "Hello!", stream=True, extra_body={"return_experts": True})
    chunks = [chunk.to_dict() for chunk in stream]
    tokens = [token for chunk in chunks for token in chunk.get("experts", ())]
    config = llm.config
    layers = config.num_layers - config.num_dense_layers
    tiers = [token for chunk in chunks for token in chunk.get("expert_tiers", ())]
    assert tiers == [layers * ["R" * config.top_k]] * len(tokens)
    assert tokens
    for token in tokens:
        assert len(token) == layers
        for ids in token:
            assert len(set(ids)) == config.top_k
            assert set(ids) <= set(range(config.num_experts))


def test_copies_are_separate_requests_with_the_seeds_that_follow(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "test", "messages": [{"role": "user", "content": "Tell me about foxes."}],
        "temperature": 1.2, "max_tokens": 30,
        "extra_body": {
            "dry_multiplier": 0.8, "xtc_probability": 0.5, "top_n_sigma": 2.0, "min_tokens": 20,
            "temperature_last": True,
        },
    }  # fmt: skip
    copies = client.chat.completions.create(n=3, seed=7, **options)
    texts = [choice.message.content for choice in copies.choices]
    alone = [client.chat.completions.create(seed=7 + i, **options) for i in range(3)]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts)) == 3
    assert min(answer.usage.completion_tokens for answer in alone if answer.usage) >= 20

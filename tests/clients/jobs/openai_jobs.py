"""Jobs of OpenAI's Python client: what its README and guides show."""

import json
import threading
from typing import Any

import openai
from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, V1, WEATHER_SCHEMA, Sum, fails, job, run
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=120)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": WEATHER_SCHEMA,
    },
}


class Measure(Sum):
    """An answer by schema, with a text."""

    unit: str = Field(max_length=8)


class GetWeather(BaseModel):
    """Get the weather in a city."""

    city: str = Field(max_length=12)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def chat(text: str | list[Any], **options: Any) -> Any:
    """Chat greedily: one call of chat.completions.create."""
    messages = user(text) if isinstance(text, str) else text
    arguments = {"model": MODEL, "temperature": 0.0, "max_tokens": 60, **options}
    return client.chat.completions.create(messages=messages, **arguments)


@job
def lists_and_retrieves_models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@job
def chats() -> None:
    answer = chat([{"role": "developer", "content": "Be brief."}, *user(SUM)])
    assert answer.choices[0].message.content.endswith("85"), answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@job
def chats_over_several_turns() -> None:
    messages = user("My name is Bokira.")
    messages.append(chat(messages).choices[0].message)
    messages += user("What is my name?")
    answer = chat(messages)
    assert "Bokira" in answer.choices[0].message.content, answer
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


@job
def streams() -> None:
    pieces = []
    for chunk in chat(SUM, stream=True):
        assert len(chunk.choices) == 1, chunk
        pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces).endswith("85")
    assert sum(map(bool, pieces)) > 3


@job
def streams_with_usage() -> None:
    *chunks, last = chat(SUM, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens > 3


@job
def streams_events() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=user(SUM), temperature=0.0, max_tokens=60
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") > 3 and "content.done" in kinds, kinds
    assert (final.choices[0].message.content or "").endswith("85")


@job
async def chats_asynchronously() -> None:
    async with AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0) as other:
        messages: Any = user(SUM)
        answer = await other.chat.completions.create(
            model=MODEL, messages=messages, temperature=0.0, max_tokens=60
        )
        assert (answer.choices[0].message.content or "").endswith("85")
        stream = await other.chat.completions.create(
            model=MODEL, messages=messages, temperature=0.0, max_tokens=60, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text.endswith("85")


@job
def calls_a_tool_and_uses_its_result() -> None:
    messages = user(ASK_WEATHER)
    answer = chat(messages, tools=[TOOL]).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    final = chat([*messages, answer.message, result], tools=[TOOL]).choices[0]
    assert final.finish_reason == "stop"
    assert "foggy" in final.message.content, final


@job
def streams_a_tool_call() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=user(ASK_WEATHER), tools=[TOOL], temperature=0.0, max_tokens=60
    ) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [{"city": "Oslo"}], done


@job
def requires_and_forbids_calls() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        answer = chat(ASK_WEATHER, tools=[TOOL], tool_choice=choice).choices[0]
        assert answer.message.tool_calls[0].function.name == "get_weather"
    assert not chat(ASK_WEATHER, tools=[TOOL], tool_choice="none").choices[0].message.tool_calls


@job
def parses_a_tools_arguments() -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=user(ASK_WEATHER),
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0.0,
        max_tokens=60,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather), call


@job
def parses_an_answer() -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=user(SUM), response_format=Measure, temperature=0.0, max_tokens=90
    )
    assert isinstance(answer.choices[0].message.parsed, Measure), answer


@job
def answers_in_json() -> None:
    answer = chat(SUM, response_format={"type": "json_object"}, max_tokens=200).choices[0]
    assert answer.finish_reason == "stop"
    assert isinstance(json.loads(answer.message.content), dict)


@job
def gives_several_choices() -> None:
    answer = chat("Hello!", n=3, temperature=1.0, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)
    indices = {chunk.choices[0].index for chunk in chat(SUM, n=2, stream=True)}
    assert indices == {0, 1}


@job
def gives_log_probabilities() -> None:
    answer = chat(SUM, logprobs=True, top_logprobs=2).choices[0]
    entries = answer.logprobs.content
    assert "".join(entry.token for entry in entries) == answer.message.content
    assert all(entry.logprob <= 0.0 and len(entry.top_logprobs) == 2 for entry in entries)
    streamed = [c.choices[0].logprobs for c in chat(SUM, logprobs=True, stream=True)]
    tokens = [entry.token for part in streamed if part for entry in part.content or ()]
    assert tokens == [entry.token for entry in entries]


@job
def stops_at_strings_and_limits() -> None:
    whole = chat(SUM).choices[0].message.content
    cut = chat(SUM, stop=["4+3"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index("4+3")], "stop")
    short = chat(SUM, max_tokens=openai.omit, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3


@job
def repeats_with_a_seed() -> None:
    texts = [
        chat("Tell a tale of a router.", temperature=2.0, seed=seed).choices[0].message.content
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2], texts


@job
def forbids_a_token() -> None:
    token = chat(SUM, logprobs=True).choices[0].logprobs.content[0]
    ids = client.post("/../tokenize", cast_to=object, body={"content": token.token})
    (token_id,) = ids["tokens"]  # type: ignore[index]
    other = chat(SUM, logit_bias={str(token_id): -100}, logprobs=True)
    assert all(e.token != token.token for e in other.choices[0].logprobs.content)


@job
def reads_headers_and_raw_answers() -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=user(SUM), temperature=0.0, max_tokens=60
    )
    assert raw.headers["x-request-id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=user(SUM), temperature=0.0, max_tokens=60
    ) as response:
        assert '"usage"' in "".join(response.iter_lines())


@job
def completes_text() -> None:
    one = client.completions.create(model=MODEL, prompt="What is", temperature=0.0, max_tokens=8)
    assert one.choices[0].text and one.usage and one.usage.completion_tokens <= 8
    stream = client.completions.create(
        model=MODEL, prompt="What is", temperature=0.0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text
    many = client.completions.create(
        model=MODEL, prompt=["What is", "Hello"], temperature=0.0, max_tokens=8
    )
    assert many.choices[0].text == one.choices[0].text
    assert len(many.choices) == 2


@job
def scores_a_text() -> None:
    scored = client.completions.create(
        model=MODEL, prompt=SUM, echo=True, logprobs=1, max_tokens=0, temperature=0
    )
    found = scored.choices[0].logprobs
    assert scored.choices[0].text == SUM
    assert found and found.tokens and found.token_logprobs and found.text_offset
    assert "".join(found.tokens) == SUM
    assert found.token_logprobs[0] is None
    assert all(isinstance(value, float) for value in found.token_logprobs[1:])


@job
def says_what_is_not_found_or_not_allowed() -> None:
    error = fails(openai.NotFoundError, lambda: chat(SUM, model="gpt-9"))
    assert error.code == "model_not_found" and "gpt-9" in error.message
    with OpenAI(base_url=V1, api_key="wrong", max_retries=0) as stranger:
        fails(openai.AuthenticationError, stranger.models.list)


@job
def says_what_is_wrong_in_a_request() -> None:
    error = fails(openai.BadRequestError, lambda: chat(SUM, top_p=3.0))
    assert error.param == "top_p", error
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    error = fails(openai.BadRequestError, lambda: chat([{"role": "user", "content": image}]))
    assert "image" in error.message
    fails(openai.BadRequestError, lambda: chat(SUM, modalities=["audio"], audio={"voice": "ash"}))


@job
def says_that_the_context_is_full() -> None:
    error = fails(openai.BadRequestError, lambda: chat("word " * 1500))
    assert error.code == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in error.message


@job
def refuses_embeddings_and_images_by_name() -> None:
    error = fails(
        openai.APIStatusError, lambda: client.embeddings.create(model=MODEL, input="text")
    )
    assert error.status_code == 501 and "embeddings" in error.message
    fails(openai.NotFoundError, lambda: client.images.generate(model=MODEL, prompt="a cat"))


@job
def gives_up_in_time_and_goes_on() -> None:
    hasty = client.with_options(timeout=0.05)
    endless: Any = {"extra_body": {"ignore_eos": True}, "max_tokens": 900}
    fails(
        openai.APITimeoutError,
        lambda: hasty.chat.completions.create(model=MODEL, messages=user(SUM), **endless),
    )
    stream = chat("Hello!", stream=True, **endless)
    next(stream)
    stream.close()
    assert chat(SUM).choices[0].message.content.endswith("85")


@job
def waits_or_is_told_to_come_back() -> None:
    refused: list[openai.RateLimitError] = []

    def ask_long() -> None:
        try:
            chat("Hello!", max_tokens=400, extra_body={"ignore_eos": True})
        except openai.RateLimitError as error:
            refused.append(error)

    crowd = [threading.Thread(target=ask_long) for _ in range(24)]  # 4 run, 8 wait
    for thread in crowd:
        thread.start()
    patient = client.with_options(max_retries=20)
    answer = patient.chat.completions.create(model=MODEL, messages=user(SUM), temperature=0.0)
    assert (answer.choices[0].message.content or "").endswith("85")
    for thread in crowd:
        thread.join()
    assert refused and all(int(error.response.headers["retry-after"]) > 0 for error in refused)


@job
def serves_many_at_once() -> None:
    texts: dict[int, str] = {}

    def one(number: int) -> None:
        answer = chat(f"What is {number} + 7?")
        texts[number] = answer.choices[0].message.content or ""

    threads = [threading.Thread(target=one, args=(number,)) for number in range(11, 19)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text.endswith(str(number + 7)) for number, text in texts.items()), texts
    assert len(texts) == 8


run()

"""OpenAI's own Python client against the endpoint, on the fake engine."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from endpoint_requests import user
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, model_aliases=("other",)) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="test", messages=user("say Hi °é"))
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hi °é")
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.system_fingerprint


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="test", messages=user("say Hi °é"), stream=True)
    chunks = list(stream)
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all("usage" not in chunk.to_dict() for chunk in chunks)
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert last.finish_reason == "stop"
    assert not last.delta.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hi °é"
    assert chunks[-1].to_dict()["timings"]["prompt_n"] > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_in_one_last_chunk_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="test",
        messages=user("count 5"),
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks)


def test_length_is_told(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = client.chat.completions.create(
            model="test",
            messages=user("count 9"),
            **limit,  # type: ignore[call-overload]
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_stop_strings_do_not_show_and_end_the_engines_work(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    answer = client.chat.completions.create(
        model="test", messages=user("say one two three four"), stop=["thr", "zzz"]
    )
    assert answer.choices[0].message.content == "one two "
    assert answer.choices[0].finish_reason == "stop"
    assert llm.engine.tickets[-1].cancelled.is_set()


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, llm: FakeLLM) -> None:
    client.chat.completions.create(
        model="test",
        messages=user("say x"),
        temperature=0.25,
        top_p=0.5,
        seed=-2,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logit_bias={"65": -100, "66": 5},
        extra_body={"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    params = llm.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.25, 0.5, 7, 0.125)
    assert (params.presence_penalty, params.frequency_penalty) == (1.0, -1.0)
    assert params.repetition_penalty == 1.5
    assert params.seed == 2**64 - 2
    assert (params.logit_bias[65], params.logit_bias[66]) == (float("-inf"), 5.0)


def test_several_choices_have_their_own_seeds(client: openai.OpenAI, llm: FakeLLM) -> None:
    answer = client.chat.completions.create(model="test", messages=user("say x"), n=3, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["x", "x", "x"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(r.params.seed or 0 for r in llm.engine.requests[-3:]) == [5, 6, 7]
    stream = client.chat.completions.create(
        model="test", messages=user("say x y"), n=2, stream=True
    )
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["x y", "x y"]


def test_logprobs(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "test", "logprobs": True, "top_logprobs": 2}
    messages = user("say <think>no</think>one A stop two")
    whole = client.chat.completions.create(messages=messages, stop="stop", **arguments)
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content or []
    assert whole.choices[0].message.content == "one A "
    text = "".join(entry.token for entry in entries)
    assert text.startswith("one A ")
    assert not text.removesuffix(entries[-1].token).startswith("one A ")
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == text
    stream = client.chat.completions.create(
        messages=messages, stop="stop", stream=True, **arguments
    )
    streamed = [
        entry
        for chunk in stream
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.to_dict() for entry in streamed] == [entry.to_dict() for entry in entries]


def test_progress_and_experts_come_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="test",
        messages=user("count 4"),
        stream=True,
        extra_body={"return_progress": True, "return_experts": True},
    )
    chunks = [chunk.to_dict() for chunk in stream]
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert [p["processed"] for p in progress] == [progress[-1]["total"] // 2, progress[-1]["total"]]
    experts = [token for chunk in chunks for token in chunk.get("experts", ())]
    assert experts == [[[0, 1], [2, 3], [4, 5]]] * 4
    tiers = [token for chunk in chunks for token in chunk.get("expert_tiers", ())]
    assert tiers == [["VR", "RD", "RD"]] * 4


def test_a_client_that_leaves_frees_its_sequence(client: openai.OpenAI, llm: FakeLLM) -> None:
    stream = client.chat.completions.create(model="test", messages=user("slow"), stream=True)
    next(iter(stream))
    stream.close()
    assert llm.engine.tickets[-1].finished.wait(HANG_S)
    assert llm.engine.tickets[-1].cancelled.is_set()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="test", messages=user("slow")
        )
    assert llm.engine.tickets[-1].finished.wait(HANG_S)


def test_an_error_in_mid_stream_reaches_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="the engine failed: out of order"):
        for _ in client.chat.completions.create(model="test", messages=user("break"), stream=True):
            pass
    with pytest.raises(openai.InternalServerError, match="the engine failed: out of order"):
        client.chat.completions.create(model="test", messages=user("break"))


def test_the_context_is_exceeded_in_the_words_that_agents_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="test", messages=user("x y z " * 1000))
    error = caught.value
    assert (error.code, error.type) == ("context_length_exceeded", "invalid_request_error")
    assert "maximum context length is 1024 tokens" in error.message
    assert "exceeds the available context size" in error.message
    assert isinstance(error.body, dict)
    assert error.body["n_ctx"] == 1024 < error.body["n_prompt_tokens"]


def test_a_full_queue_is_429_and_nothing_is_left_running(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    streams = [
        client.chat.completions.create(model="test", messages=user("slow"), stream=True)
        for _ in range(15)
    ]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="test", messages=user("slow"), n=2)
    assert int(caught.value.response.headers["retry-after"]) > 0
    for stream in streams:
        stream.close()
    eventually(lambda: llm.engine.num_running == 0)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="test", prompt="count 30")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    whole = client.completions.create(model="other", prompt="say a b c", logprobs=1, max_tokens=50)
    assert whole.model == "other"
    assert whole.choices[0].text == "a b c"
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == "a b c"
    for top, token in zip(logprobs.top_logprobs or [], logprobs.tokens or [], strict=True):
        assert list(top)[1:] == [token]  # beside the likeliest, as OpenAI's
    stream = client.completions.create(model="test", prompt="say a b c", stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a b c"
    assert chunks[-1].choices[0].finish_reason == "stop"
    ids = client.completions.create(model="test", prompt=[65, 66, 67], max_tokens=3)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3


@pytest.mark.parametrize("form", ["texts", "ids"])
def test_several_prompts_at_once(client: openai.OpenAI, llm: FakeLLM, form: str) -> None:
    texts = ["say one", "say two three", "count 3"]
    encode = llm.tokenizer.encode
    prompts: Any = texts if form == "texts" else [encode(text) for text in texts]
    want = ["one", "one", "two three", "two three", "a a a", "a a a"]
    arguments: Any = {"model": "test", "prompt": prompts, "n": 2, "seed": 5, "logprobs": 0}
    whole = client.completions.create(**arguments)
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert [choice.text.strip() for choice in whole.choices] == want
    assert whole.usage is not None
    sent = [encode(text, add_special=form == "texts") for text in texts]
    assert whole.usage.prompt_tokens == sum(len(ids) for ids in sent)
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == len(texts)
    assert [r.params.seed for r in llm.engine.requests[-6:]] == [5, 6] * 3
    streamed = [""] * 6
    reasons: list[object] = [None] * 6
    for chunk in client.completions.create(stream=True, **arguments):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
        reasons[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert streamed == [choice.text for choice in whole.choices]
    assert reasons == ["stop"] * 6


def test_more_prompts_than_can_wait_are_refused_for_good(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="9 prompts with 2 choices each are 18"):
        client.completions.create(model="test", prompt=["say x"] * 9, n=2)


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        ([], "prompt", "at least 1"),
        ([[]], "prompt[0]", "at least 1"),
        ([[1], []], "prompt[1]", "at least 1"),
        (["a", 1], "prompt[1]", "string"),
        ([1, "a"], "prompt[1]", "integer"),
        ([[1], "a"], "prompt[1]", "list"),
        ([1, -1], "prompt[1]", "greater"),
        (7, "prompt", "string"),
    ],
)
def test_prompts_that_are_none(client: openai.OpenAI, prompt: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.completions.create(model="test", prompt=prompt)
    assert caught.value.param == param


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["test", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")

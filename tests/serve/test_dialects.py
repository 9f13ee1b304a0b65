"""Parameters under the names of llama.cpp, vLLM, SGLang and ollama."""

import json
from typing import Any

import httpx2
import pytest
from endpoint_requests import CALL, CHAT, REQUESTS, WEATHER, ask, user
from fake_engine import FakeLLM
from pydantic import ValidationError

from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.schemas.sampling import SamplingFields

FILTERS_OFF = {
    "top_n_sigma": 0.0, "top_k": 0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0,
    "xtc_probability": 0.0,
}  # fmt: skip
OFF = {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "dry_multiplier": 0.0, **FILTERS_OFF,
}  # fmt: skip


def sampling(**fields: Any) -> dict[str, Any]:
    return SamplingFields.model_validate(fields).sampling()


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"top_k": -1, "top_n_sigma": -1}, {"top_k": 0, "top_n_sigma": 0.0}),
        ({"seed": -1}, {}),
        ({"seed": 7.0, "min_tokens": 2.0}, {"seed": 7, "min_tokens": 2}),
        ({"logit_bias": [[5, 1.5], [6, False]]}, {"logit_bias": {5: 1.5, 6: float("-inf")}}),
        ({"stop": "", "stop_token_ids": [3]}, {"stop_token_ids": [3]}),
        ({"typical_p": 0.5, "ignore_eos": True}, {"typical_p": 0.5, "ignore_eos": True}),
        (
            {"temperature": 1.5, "temperature_last": True},
            {"temperature": 1.5, "temperature_last": True},
        ),
        (
            {"options": {"num_ctx": 9, "repeat_penalty": 2.0, "top_k": 3}, "top_k": 4},
            {"repetition_penalty": 2.0, "top_k": 4},
        ),
        (
            {"samplers": ["top_k", "temperature"], "top_k": 5, "top_p": 0.5},
            {**OFF, "top_k": 5, "temperature_last": True},
        ),
        (
            {"samplers": ["penalties", "dry", "temp", "typ_p"], "typical_p": 0.5},
            {**FILTERS_OFF, "typical_p": 0.5, "temperature_last": False},
        ),
        (
            {"samplers": ["min_p"], "min_p": 0.5, "temperature": 0.5},
            {**OFF, "min_p": 0.5, "temperature": 1.0},
        ),
    ],
)
def test_names_of_sampling_parameters(given: dict[str, Any], params: dict[str, Any]) -> None:
    assert sampling(**given) == params
    SamplingParams(**params)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"repeat_penalty": 1.5, "repetition_penalty": 2.0}, "repeat_penalty is 1.5"),
        ({"samplers": ["min_p", "top_k"]}, "samplers: this order"),
        ({"samplers": ["top_k", "top_k"]}, "samplers: this order"),
        ({"samplers": ["top_k", "temperature", "min_p"]}, "temperature stands between"),
        ({"samplers": ["mirostat"]}, "'mirostat' is not supported"),
        ({"logit_bias": {"x": 1}}, "'x' is not a token id"),
        ({"logit_bias": [["x", 1]]}, "'x' is not a token id"),
    ],
)
def test_parameters_that_contradict_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        sampling(**given)
    assert caught.value.param in given


@pytest.mark.parametrize(
    "given",
    [
        {"options": {"mirostat": 2}}, {"options": {"temperature": "hot"}}, {"options": 1},
        {"logit_bias": [5]}, {"logit_bias": [[5]]}, {"logit_bias": [[1, 1]] * 2000},
        {"stop_token_ids": [-1]}, {"min_tokens": -1}, {"xtc_probability": 2},
    ],
)  # fmt: skip
def test_parameters_that_are_not_valid(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        sampling(**given)


@pytest.mark.parametrize("path", REQUESTS)
def test_every_api_takes_them(http: httpx2.Client, llm: FakeLLM, path: str) -> None:
    ask(
        http, path, top_k=3, min_p=0.25, typical_p=0.5, repeat_penalty=1.5, seed=7, stop=["x"],
        presence_penalty=1.0, dry_multiplier=0.5, xtc_probability=0.5, stop_token_ids=[9],
        ignore_eos=True, min_tokens=2, logit_bias={"5": 1.0},
    )  # fmt: skip
    params = llm.engine.requests[-1].params
    assert (params.top_k, params.min_p, params.typical_p) == (3, 0.25, 0.5)
    assert (params.repetition_penalty, params.presence_penalty) == (1.5, 1.0)
    assert (params.seed, params.min_tokens, params.ignore_eos) == (7, 2, True)
    assert (params.stop, params.stop_token_ids) == (("x",), (9,))
    assert (params.dry_multiplier, params.xtc_probability) == (0.5, 0.5)
    assert params.logit_bias[5] == 1.0


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        (CHAT, {"n_predict": 3}, 3),
        (CHAT, {"n_predict": 3, "max_tokens": 4}, 4),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": 2.0}, 2),
        ("/v1/completions", {"n_predict": 3}, 3),
        ("/v1/completions", {"n_predict": -1}, None),
        ("/v1/completions", {}, 16),
        ("/v1/responses", {"n_predict": 3}, 3),
    ],
)
def test_the_limit_of_tokens(
    http: httpx2.Client, llm: FakeLLM, path: str, fields: dict[str, Any], limit: int | None
) -> None:
    ask(http, path, **fields)
    assert llm.engine.requests[-1].params.max_tokens == limit


def test_llama_cpps_names_of_log_probabilities_and_choices(http: httpx2.Client) -> None:
    chat = ask(http, CHAT, n_probs=2, n_cmpl=2)
    assert len(chat["choices"]) == 2
    assert len(chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    text = ask(http, "/v1/completions", n_probs=2)
    assert len(text["choices"][0]["logprobs"]["top_logprobs"][0]) == 3  # the token itself, too
    assert ask(http, CHAT, n_probs=0)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_token_ids_of_prompt_and_response(http: httpx2.Client, llm: FakeLLM, path: str) -> None:
    whole = ask(http, path, return_token_ids=True)
    choice = whole["choices"][0]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert llm.tokenizer.decode(choice["token_ids"]) == text
    prompt_ids = list(llm.engine.requests[-1].prompt_ids)
    assert (whole if path == CHAT else choice)["prompt_token_ids"] == prompt_ids
    stream = chunks(http, path, return_token_ids=True)
    parts = [chunk["choices"][0].get("token_ids", []) for chunk in stream]
    assert [i for part in parts for i in part] == choice["token_ids"]
    holders = [chunk if path == CHAT else chunk["choices"][0] for chunk in stream]
    assert [one["prompt_token_ids"] for one in holders if "prompt_token_ids" in one] == [prompt_ids]


def test_log_probabilities_that_name_tokens_by_id(http: httpx2.Client) -> None:
    more = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = ask(http, CHAT, logprobs=True, top_logprobs=1, **more)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [one["token"] for one in entries] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert entries[0]["top_logprobs"][0]["token"] == "token_id:0"
    choice = ask(http, "/v1/completions", logprobs=1, **more)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]


def test_a_response_without_its_reasoning(http: httpx2.Client) -> None:
    thought = {"messages": user("say <think>hm</think>Hi")}
    assert ask(http, CHAT, **thought)["choices"][0]["message"]["reasoning_content"] == "hm"
    message = ask(http, CHAT, **thought, include_reasoning=False)["choices"][0]["message"]
    assert message["content"] == "Hi" and "reasoning_content" not in message
    stream = chunks(http, CHAT, **thought, include_reasoning=False)
    deltas = [chunk["choices"][0]["delta"] for chunk in stream]
    assert not any("reasoning_content" in delta for delta in deltas)
    assert "".join(delta.get("content", "") for delta in deltas) == "Hi"


def test_null_is_the_default(http: httpx2.Client) -> None:
    options = {"include_usage": None, "continuous_usage_stats": None}
    nulls = dict.fromkeys(("return_progress", "ignore_eos", "include_reasoning", "stop", "seed"))
    body = {**REQUESTS[CHAT], **nulls, "stream_options": options}
    assert http.post(CHAT, json=body).status_code == 200
    answer = http.post(CHAT, json={**REQUESTS[CHAT], "messages": None, "return_progress": None})
    assert answer.json()["error"]["param"] == "messages"


def test_best_of_may_not_exceed_n(http: httpx2.Client) -> None:
    assert len(ask(http, "/v1/completions", n=2, best_of=2)["choices"]) == 2
    answer = http.post("/v1/completions", json={"prompt": "a", "best_of": 2})
    assert answer.status_code == 400
    assert "best_of: is more than n, 1" in answer.json()["error"]["message"]


def test_older_functions_get_an_older_response(http: httpx2.Client, llm: FakeLLM) -> None:
    older = {"functions": [WEATHER["function"]], "function_call": "auto"}
    choice = ask(http, CHAT, messages=user(f"say {CALL}"), **older)["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {
        "name": "get_weather", "arguments": '{"city":"Oslo"}',
    }  # fmt: skip
    assert "tool_calls" not in choice["message"]
    forced = {**older, "function_call": {"name": "get_weather"}}
    ask(http, CHAT, **forced)
    assert llm.engine.requests[-1].constraint is not None
    answer = http.post(CHAT, json={**REQUESTS[CHAT], **older, "function_call": {"name": "f"}})
    assert "'f', which tools lacks" in answer.json()["error"]["message"]


def chunks(http: httpx2.Client, path: str, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post(path, json={**REQUESTS[path], "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_of_an_older_function_call(http: httpx2.Client) -> None:
    functions = [WEATHER["function"]]
    stream = chunks(http, CHAT, messages=user(f"say {CALL}"), functions=functions)
    choices = [chunk["choices"][0] for chunk in stream]
    parts = [one["delta"]["function_call"] for one in choices if "function_call" in one["delta"]]
    assert parts[0]["name"] == "get_weather"
    assert "".join(part["arguments"] for part in parts) == '{"city":"Oslo"}'
    assert not any("tool_calls" in one["delta"] for one in choices)
    assert choices[-1]["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("path", "fields"),
    [(CHAT, {"messages": user("count 3")}), ("/v1/completions", {"prompt": "a b c"})],
)
def test_counts_timings_and_progress_in_every_chunk(
    http: httpx2.Client, path: str, fields: dict[str, Any]
) -> None:
    counts = {"continuous_usage_stats": True}
    stream = chunks(http, path, **fields, stream_options=counts, timings_per_token=True)
    counted = [chunk["usage"]["completion_tokens"] for chunk in stream]
    assert counted == sorted(counted) and counted[-1] > counted[0] >= 0
    assert stream[-1]["choices"] == []
    assert all("prompt_n" in chunk["timings"] for chunk in stream if chunk["choices"])
    stream = chunks(http, path, **fields, return_progress=True)
    progress = [chunk["prompt_progress"] for chunk in stream if "prompt_progress" in chunk]
    assert progress[-1]["processed"] == progress[-1]["total"] > 0
    assert progress[-1].keys() == {"processed", "total", "cache", "time_ms"}
    assert not any("usage" in chunk for chunk in stream)


def test_timings_and_progress_in_events_of_responses(http: httpx2.Client) -> None:
    body = {**REQUESTS["/v1/responses"], "stream": True}
    more = {"timings_per_token": True, "return_progress": True}
    answer = http.post("/v1/responses", json={**body, **more})
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    progress = [event for event in events if "prompt_progress" in event]
    assert {event["type"] for event in progress} == {"response.in_progress"}
    timed = {event["type"] for event in events if "timings" in event}
    assert timed == {"response.output_text.delta", "response.completed"}
    assert "timings" not in http.post("/v1/responses", json=body).text.split("completed")[0]


def test_counts_of_a_prompt_that_is_not_computed(http: httpx2.Client, llm: FakeLLM) -> None:
    before = len(llm.engine.requests)
    counted = http.post("/v1/chat/completions/input_tokens", json=REQUESTS[CHAT]).json()
    assert len(llm.engine.requests) == before
    assert counted["input_tokens"] == ask(http, CHAT)["usage"]["prompt_tokens"]


def test_llama_servers_prompt_objects(http: httpx2.Client, llm: FakeLLM) -> None:
    def complete(prompt: Any) -> httpx2.Response:
        return http.post("/completion", json={"prompt": prompt, "n_predict": 1})

    assert complete({"prompt_string": "say Hi"}).status_code == 200
    single = list(llm.engine.requests[-1].prompt_ids)
    assert len(complete([[65, 66], {"prompt_string": "say Hi"}]).json()) == 2
    assert single in [list(request.prompt_ids) for request in llm.engine.requests[-2:]]
    picture = {"prompt_string": "a", "multimodal_data": ["AA=="]}
    assert "text only" in complete(picture).json()["error"]["message"]
    assert complete({"prompt": "a"}).status_code == 400


def test_texts_without_their_begin_token(http: httpx2.Client, llm: FakeLLM) -> None:
    ask(http, "/v1/completions", add_special_tokens=False)
    plain = list(llm.engine.requests[-1].prompt_ids)
    assert plain == llm.tokenizer.encode("say Hi", add_special=False, parse_special=True)


def test_reasoning_and_refusal_of_earlier_messages(http: httpx2.Client, llm: FakeLLM) -> None:
    earlier = {"role": "assistant", "content": None, "refusal": "I will not", "reasoning": "hm"}
    ask(http, CHAT, messages=[*user("a"), earlier, *user("say Hi")])
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
    assert "I will not<|im_end|>" in prompt

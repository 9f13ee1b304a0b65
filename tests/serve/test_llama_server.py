"""llama-server's paths: its own completion and stream, /props, /slots, /apply-template, aliases."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from endpoint_requests import WEATHER, user
from fake_engine import FakeLLM
from live_server import LiveServer
from waiting import HANG_S

RENDERED = "<|im_user|>user<|im_middle|>say Hi<|im_end|><|im_assistant|>assistant<|im_middle|>"


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def complete(http: httpx2.Client, prompt: Any, **fields: Any) -> Any:
    answer = http.post("/completion", json={"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx2.Client, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", "/completion", json={**body, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: {") for line in lines)  # no [DONE]
    return [json.loads(line[6:]) for line in lines]


def test_paths_without_v1_are_the_same(http: httpx2.Client) -> None:
    body = {"messages": user("say Hi")}
    for path in ("/chat/completions", "/v1/chat/completions"):
        answer = http.post(path, json=body).json()
        assert answer["choices"][0]["message"]["content"] == "Hi"
    assert http.get("/models").json() == http.get("/v1/models").json()
    assert http.get("/models/test").json() == http.get("/v1/models/test").json()
    assert http.get("/v1/health").json() == {"status": "ok"}
    for path in ("/embedding", "/embeddings"):
        assert http.post(path, json={}).status_code == 501


def test_a_completion_in_llama_servers_form(http: httpx2.Client) -> None:
    for path in ("/completion", "/completions"):
        whole = http.post(path, json={"prompt": "say a\nb", "temperature": 0.5}).json()
        assert whole["content"] == "a\nb" and whole["stop"] is True and whole["index"] == 0
        assert (whole["stop_type"], whole["stopping_word"]) == ("eos", "")
        assert whole["has_new_line"] is True and whole["truncated"] is False
        assert whole["prompt"] == "say a\nb" and whole["model"] == "test"
        assert whole["tokens"] == [] and whole["tokens_evaluated"] > whole["tokens_cached"] == 1
        assert whole["generation_settings"]["temperature"] == 0.5
        assert whole["generation_settings"]["n_predict"] == -1
        assert whole["timings"]["predicted_n"] == whole["tokens_predicted"]


@pytest.mark.parametrize(
    ("fields", "stop_type", "word", "content"),
    [
        ({"n_predict": 3}, "limit", "", "a a a"),
        ({"max_tokens": 3}, "limit", "", "a a a"),
        ({"stop": ["a a a"]}, "word", "a a a", ""),
        ({"n_predict": -1}, "eos", "", "a a a a a"),
    ],
)
def test_why_a_completion_ends(
    http: httpx2.Client, fields: dict[str, Any], stop_type: str, word: str, content: str
) -> None:
    order = "say a a a a a"
    whole = complete(http, order, **fields)
    assert (whole["stop_type"], whole["stopping_word"]) == (stop_type, word)
    assert content.startswith(whole["content"]) and whole["truncated"] is False
    (*_, last) = events(http, prompt=order, **fields)
    names = ("stop_type", "stopping_word", "tokens_predicted", "stop", "truncated")
    assert {name: last[name] for name in names} == {name: whole[name] for name in names}


def test_the_end_of_the_context_truncates(http: httpx2.Client) -> None:
    whole = complete(http, "slow", response_fields=["truncated", "stop_type"], n_predict=9)
    assert whole == {"truncated": False, "stop_type": "limit"}
    whole = complete(http, "count 2000", response_fields=["truncated", "stop_type"])
    assert whole == {"truncated": True, "stop_type": "limit"}


def test_a_stream_has_pieces_then_the_whole(http: httpx2.Client) -> None:
    *pieces, last = events(http, prompt="say some text")
    whole = complete(http, "say some text", return_tokens=True)
    assert "".join(piece["content"] for piece in pieces) == whole["content"] == "some text"
    assert [i for piece in pieces for i in piece["tokens"]] == whole["tokens"] != []
    assert all(piece["stop"] is False and piece["content"] for piece in pieces)
    assert all(piece["tokens"] for piece in pieces) and last["tokens"] == []
    assert last["stop"] is True and last["content"] == "" and "timings" in last
    assert last.keys() == whole.keys()


def test_progress_of_the_prompt_comes_before_the_text(http: httpx2.Client) -> None:
    first, *_ = events(http, prompt="read 5", return_progress=True)
    assert first["prompt_progress"]["processed"] < first["prompt_progress"]["total"]
    assert "prompt_progress" not in events(http, prompt="read 5")[0]


def test_probabilities_of_tokens(http: httpx2.Client) -> None:
    whole = complete(http, "say Hi there", n_probs=2)
    entries = whole["completion_probabilities"]
    assert "".join(entry["token"] for entry in entries) == "Hi there"
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert [one["id"] for one in entry["top_logprobs"]] == [0, 1]
    assert "completion_probabilities" not in complete(http, "say Hi")
    *pieces, _ = events(http, prompt="say Hi there", n_probs=2)
    assert [one for piece in pieces for one in piece["completion_probabilities"]] == entries


def test_prompts_of_text_and_ids(http: httpx2.Client, llm: FakeLLM) -> None:
    ids = http.post("/tokenize", json={"content": "say "}).json()["tokens"]
    assert (
        complete(http, ids + http.post("/tokenize", json={"content": "Hi"}).json()["tokens"])[
            "content"
        ]
        == "Hi"
    )
    assert complete(http, [*ids, "Hi"])["content"] == "Hi"
    several = complete(http, ["say a", [*ids, "b"]], n_cmpl=2)
    assert [(one["index"], one["content"]) for one in several] == [
        (0, "a"), (1, "a"), (2, "b"), (3, "b"),
    ]  # fmt: skip
    for prompt in ([], [[]], [1.5], [{"prompt": "x"}], None):
        assert http.post("/completion", json={"prompt": prompt}).status_code == 400, prompt


def test_formats_and_biases_reach_the_engine(http: httpx2.Client, llm: FakeLLM) -> None:
    complete(http, "say Hi", logit_bias=[[5, 1.5], [6, False]], n_predict=0)
    assert llm.engine.requests[-1].params.logit_bias == {5: 1.5, 6: float("-inf")}
    assert llm.engine.requests[-1].params.temperature_last
    for fields in ({"grammar": 'root ::= "a"'}, {"json_schema": {"type": "integer"}}):
        complete(http, "say Hi", n_predict=1, **fields)
        assert llm.engine.requests[-1].constraint is not None
    for bias in ([[5]], [5], [["x", 1]], [[5, True]], "x"):
        answer = http.post("/completion", json={"prompt": "say Hi", "logit_bias": bias})
        assert answer.status_code == 400, bias
        assert answer.json()["error"]["param"].startswith("logit_bias")


def test_what_changes_the_text_and_is_not_there_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/completion", json={"prompt": "say Hi", "mirostat": 2})
    assert answer.status_code == 400 and "mirostat" in answer.json()["error"]["message"]
    answer = http.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert answer.status_code == 501 and "fill in the middle" in answer.json()["error"]["message"]


def test_props_describe_the_model(http: httpx2.Client, llm: FakeLLM) -> None:
    props = http.get("/props").json()
    settings = props["default_generation_settings"]
    assert settings["n_ctx"] == settings["params"]["n_ctx"] == llm.context_tokens
    assert settings["params"]["temperature"] == llm.sampling_params({}).temperature
    assert props["total_slots"] == llm.engine.config.max_running
    assert props["model_path"].endswith(".gguf") and props["model_alias"] == "test"
    assert "<|im_middle|>" in props["chat_template"]
    assert props["eos_token"].startswith("<|") or props["eos_token"].startswith("[")
    assert http.get("/props?model=no").status_code == 404
    assert http.post("/props", json={}).status_code == 405


def test_slots_show_what_runs(http: httpx2.Client, llm: FakeLLM) -> None:
    total = llm.engine.config.max_running

    def running() -> int:
        slots = http.get("/slots").json()
        assert [slot["id"] for slot in slots] == list(range(total))
        return sum(slot["is_processing"] for slot in slots)

    assert running() == 0
    asked = {"prompt": ["slow"] * total, "stream": True}
    with http.stream("POST", "/completion", json=asked) as answer:
        lines = answer.iter_lines()  # closes the connection when it is gone
        next(lines)
        assert running() == total
        answer = http.get("/slots?fail_on_no_slot=1")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_slot_available"
    while running():
        time.sleep(0.01)
    assert http.get("/slots?fail_on_no_slot=1").status_code == 200


def test_a_conversation_is_rendered_and_tokenized(http: httpx2.Client) -> None:
    body = {"messages": user("say Hi")}
    prompt = http.post("/apply-template", json=body).json()["prompt"]
    assert prompt.endswith(RENDERED)
    tokens = http.post("/tokenize", json=body).json()
    assert tokens["tokens"] == http.post("/tokenize", json={"content": prompt}).json()["tokens"]
    usage = http.post("/chat/completions", json=body).json()["usage"]
    assert tokens["count"] == usage["prompt_tokens"]
    more = http.post("/tokenize", json={**body, "tools": [WEATHER]}).json()
    assert more["count"] > tokens["count"]
    with_tools = http.post("/apply-template", json={**body, "tools": [WEATHER]}).json()["prompt"]
    assert "get_weather" in with_tools
    assert http.post("/tokenize", json={"messages": []}).status_code == 400


def test_a_part_of_a_character_is_given_as_bytes(http: httpx2.Client) -> None:
    pieces = http.post("/tokenize", json={"content": "a\u5b57", "with_pieces": True}).json()
    raw = b"".join(
        one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"])
        for one in pieces["tokens"]
    )
    assert raw.decode() == "a\u5b57"
    assert any(isinstance(one["piece"], list) for one in pieces["tokens"])

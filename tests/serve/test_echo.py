"""Echoed prompts and their log-probabilities, as evaluation harnesses ask for them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from fake_engine import FakeLLM
from live_server import live_server

import hybridmoe
from hybridmoe.engine.request import PromptLogprobs
from hybridmoe.serve.completion_logprobs import CompletionLogprobs
from hybridmoe.serve.generation import TokenLogprob


@pytest.fixture(scope="module")
def http(llm: FakeLLM) -> Iterator[httpx2.Client]:
    with (
        live_server(llm, max_prompt_logprobs=300) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        yield http


@pytest.fixture(scope="module")
def model() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(context_tokens=512, kv_tokens=4096, max_running=8) as model:
        yield model


@pytest.fixture(scope="module")
def served(model: hybridmoe.LLM) -> Iterator[httpx2.Client]:
    with live_server(model) as server, httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def complete(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def chunks_of(server: httpx2.Client, **body: Any) -> list[dict[str, Any]]:
    text = server.post("/v1/completions", json={"stream": True, **body}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def expected_logprobs(model: hybridmoe.LLM, ids: list[int]) -> np.ndarray:
    """Log-probabilities (T - 1, V) after each token but the last."""
    logits = model.logits(ids)[:-1].astype(np.float64)
    best = logits.max(1, keepdims=True)
    result: np.ndarray = logits - best - np.log(np.exp(logits - best).sum(1, keepdims=True))
    return result


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("form", ["texts", "ids"])
def test_the_numbers_are_the_models(
    served: httpx2.Client, model: hybridmoe.LLM, form: str, max_tokens: int
) -> None:
    """As lm-evaluation-harness asks: a batch, `logprobs: 1`, temperature 0."""
    texts = ["What is 12 + 34?", "The capital of France is Paris.", "one two three\n" * 9]
    encoded = [model.tokenizer.encode(text, add_special=form == "texts") for text in texts]
    prompts: Any = texts if form == "texts" else encoded
    whole = complete(
        served, prompt=prompts, max_tokens=max_tokens, logprobs=1, echo=True, temperature=0, seed=1
    )
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["prompt_tokens"] == sum(map(len, encoded))
    for text, ids, choice in zip(texts, encoded, whole["choices"], strict=True):
        logprobs = choice["logprobs"]
        num_tokens = len(ids) + max_tokens  # an end token counts, too
        assert {len(values) for values in logprobs.values()} == {num_tokens}
        assert choice["text"].startswith(text)
        expected = expected_logprobs(model, ids)
        own = expected[np.arange(len(ids) - 1), ids[1:]]
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        got = logprobs["token_logprobs"][1 : len(ids)]
        np.testing.assert_allclose(got, own, atol=1e-4)
        is_greedy = [one == max(top.values()) for one, top in
                     zip(got, logprobs["top_logprobs"][1 : len(ids)], strict=True)]  # fmt: skip
        assert is_greedy == (expected.argmax(1) == ids[1:]).tolist()
        assert choice["finish_reason"] in ("length", "stop")


def test_an_end_token_is_listed_with_its_log_probability(
    served: httpx2.Client, model: hybridmoe.LLM
) -> None:
    """A harness cuts off one entry for `max_tokens: 1`, which must not be the prompt's last."""
    messages = [{"role": "user", "content": "What is 12 + 34?"}]
    ids = [*model.encode_chat(messages), *model.chat(messages, temperature=0.0).token_ids]
    (choice,) = complete(served, prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0)[
        "choices"
    ]
    logprobs = choice["logprobs"]
    assert choice["finish_reason"] == "stop"
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["tokens"][-1] == "<|im_end|>"
    assert logprobs["token_logprobs"][-1] == pytest.approx(
        expected_logprobs(model, [*ids, 0])[-1].max(), abs=1e-4
    )
    assert logprobs["text_offset"][-1] == len(choice["text"])


def test_a_stream_begins_with_the_prompt(served: httpx2.Client) -> None:
    body = {"prompt": "What is 12 + 34?", "max_tokens": 8, "logprobs": 2, "echo": True,
            "temperature": 0}  # fmt: skip
    (whole,) = complete(served, **body)["choices"]
    parts = [chunk["choices"][0] for chunk in chunks_of(served, **body)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert parts[0]["text"] == body["prompt"]
    for name, values in whole["logprobs"].items():
        joined = [value for part in parts for value in (part["logprobs"] or {}).get(name, [])]
        assert joined == values, name


def test_every_choice_echoes_its_prompt(http: httpx2.Client) -> None:
    whole = complete(http, prompt=["say one", "say two"], n=2, logprobs=0, echo=True, max_tokens=9)
    texts = [choice["text"] for choice in whole["choices"]]
    assert texts == ["say oneone"] * 2 + ["say twotwo"] * 2
    for choice in whole["choices"]:
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]).removeprefix("[BOS]") == choice["text"]
        num_prompt = len(logprobs["tokens"]) - logprobs["token_logprobs"].count(-0.5)
        assert logprobs["token_logprobs"][:num_prompt] == [
            None, *(-i / 4 for i in range(1, num_prompt))
        ]  # fmt: skip
        assert [list(top.values()) for top in logprobs["top_logprobs"][1:num_prompt]] == [
            [-i / 4] for i in range(1, num_prompt)
        ]


def test_without_logprobs_only_the_text_is_echoed(http: httpx2.Client, llm: FakeLLM) -> None:
    (choice,) = complete(http, prompt="say one", echo=True)["choices"]
    assert (choice["text"], choice["logprobs"]) == ("say oneone", None)
    assert llm.engine.requests[-1].prompt_logprobs is None
    (alone,) = complete(http, prompt="say one", echo=True, max_tokens=0)["choices"]
    assert (alone["text"], alone["finish_reason"]) == ("say one", "length")
    chunks = chunks_of(http, prompt="say one", echo=True, n=2, max_tokens=0)
    assert sorted((c["choices"][0]["index"], c["choices"][0]["text"]) for c in chunks) == [
        (0, ""), (0, "say one"), (1, ""), (1, "say one")
    ]  # fmt: skip


def test_vllms_prompt_logprobs_are_by_id(http: httpx2.Client, llm: FakeLLM) -> None:
    (choice,) = complete(http, prompt=[70, 1, 65], prompt_logprobs=2)["choices"]
    text = llm.tokenizer.decode
    assert choice["logprobs"] is None
    assert choice["prompt_logprobs"] == [
        None,
        {
            "1": {"logprob": -0.25, "rank": 1, "decoded_token": text([1])},
            "0": {"logprob": -1.0, "rank": 1, "decoded_token": text([0])},
        },
        {
            "65": {"logprob": -0.5, "rank": 2, "decoded_token": text([65])},
            "0": {"logprob": -1.0, "rank": 1, "decoded_token": text([0])},
            "1": {"logprob": -2.0, "rank": 2, "decoded_token": text([1])},
        },
    ]
    chat = http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "say x"}], "prompt_logprobs": 0},
    ).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert chat["choices"][0]["message"]["content"] == "x"


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("completions", {"prompt": [1] * 151, "echo": True, "logprobs": 1}, "302; at most 300"),
        ("completions", {"prompt": [[1] * 51] * 2, "prompt_logprobs": 2}, "102 prompt tokens"),
        ("completions", {"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
        ("completions", {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "stream"),
        ("completions", {"prompt": "a", "echo": True, "logprobs": 1, "n": 2, "stream": True},
         "stream"),
        ("completions", {"prompt": [9999999], "echo": True}, "token id 9999999"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a " * 200}],
                              "prompt_logprobs": 9}, "prompt tokens with 9 alternatives"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}],
                              "prompt_logprobs": 1, "stream": True}, "stream"),
    ],
)  # fmt: skip
def test_what_costs_too_much_or_is_not_there_is_refused(
    http: httpx2.Client, path: str, body: dict[str, Any], what: str
) -> None:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    assert what in response.json()["error"]["message"]


def test_a_harness_finds_its_tokenizer_here(http: httpx2.Client, llm: FakeLLM) -> None:
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert "im_middle" in info["chat_template"]
    body = {"prompt": "Hi<|im_end|>", "add_special_tokens": False}
    ids = llm.tokenizer.encode(body["prompt"], parse_special=True)
    assert http.post("/tokenize", json=body).json()["tokens"] == ids


class TwinTokenizer:
    """Three tokens: two of the same text, and a special one."""

    def token_bytes(self, token_id: int) -> bytes:
        return (b"ab", b"ab", b"<end>")[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == 2


def test_a_likelier_twin_is_not_hidden_and_special_tokens_take_no_place() -> None:
    logprobs = CompletionLogprobs(TwinTokenizer(), 1)  # type: ignore[arg-type]
    top = ((1, -0.5),)
    got = logprobs.of_text([TokenLogprob(i, -2.0, top) for i in (0, 2, 0)])
    assert got["top_logprobs"] == [{"ab": -0.5}, {"ab": -0.5, "<end>": -2.0}, {"ab": -0.5}]
    assert got["text_offset"] == [0, 2, 2]


def test_parts_of_characters_are_told_apart_and_take_no_place(llm: FakeLLM) -> None:
    """Texts of byte tokens are ambiguous; offsets are those of the joined text."""
    ids = [llm.tokenizer.encode("a")[0], *llm.tokenizer.encode("é日"), 65]
    assert len(ids) > 4  # the characters are no tokens of this vocabulary
    zeros = np.zeros(len(ids) - 1, np.float32)
    none = np.zeros((len(ids) - 1, 0))
    event = PromptLogprobs(1, zeros, zeros.astype(np.int32), none.astype(np.int32), none)
    hidden = CompletionLogprobs(llm.tokenizer, 0).of_prompt(ids, [event], 1)  # the letter
    got = CompletionLogprobs(llm.tokenizer, 0).of_prompt(ids, [event], 0)
    assert hidden["text_offset"] == [max(0, offset - 1) for offset in got["text_offset"]]
    text = llm.tokenizer.decode(ids)
    assert got["tokens"][1] == "bytes:\\xc3"
    assert len(set(got["tokens"][1:-1])) == len(ids) - 2
    assert got["text_offset"][0] == 0
    assert got["text_offset"][-1] == text.index(llm.tokenizer.decode([65]))

"""The endpoint as HTTP: limits, keys, errors in OpenAI's shape, health, metrics, pages."""

import gzip
import json
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest
from endpoint_requests import WEATHER
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from prometheus_client.parser import text_string_to_metric_families
from waiting import HANG_S

from hybridmoe.errors import ConfigError
from hybridmoe.serve import ServeConfig
from hybridmoe.serve.middleware import key_matches

HELLO = {"messages": [{"role": "user", "content": "say Hi"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    limits = {"max_body_bytes": 200_000, "max_messages": 20, "max_choices": 4}
    hosts = ("127.0.0.1", "localhost")
    with live_server(llm, **limits, allowed_hosts=hosts) as server:
        yield server


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def refused(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [5]}, "messages[0]", "should be an object; got 5"),
        ({"stop": 5}, "stop", "Input should be a valid string or a valid list; got 5"),
        ({"stop": ["a"] * 20}, "stop", "at most 16 items"),
        ({"tool_choice": "x"}, "tool_choice", "'none', 'auto', 'required' or 'any'; got 'x'"),
        ({"json_schema": 5}, "json_schema", "an object or a valid boolean or a valid string"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex", "valid string; got 5"),
        ({"messages": "x"}, "messages", "list"),
        ({"messages": [{"role": "owl", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user"}]}, None, "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "image_url"),
        ({"messages": HELLO["messages"] * 21}, "messages", "at most 20"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": -0.5}, "temperature", "0"),
        ({"max_tokens": -2}, "max_tokens", "-1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"n": 5}, "n", "at most 4"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is not a token id"),
        ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "functions", "older name of tools"),
        ({"functions": [{"title": "f"}]}, "functions[0].name", "required"),
        ({"audio": {}}, "audio", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", ""),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
    ],
)
def test_what_is_not_valid_is_named(
    http: httpx2.Client, changes: dict[str, Any], param: str | None, words: str
) -> None:
    error = refused(http.post(CHAT, json={**HELLO, **changes}))
    assert param is None or error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"x"', b"\xff\xfe\x00", b'{"messages": NaN}', b"1" * 5000, b"[" * 60],
)
def test_bodies_that_are_no_request(http: httpx2.Client, body: bytes) -> None:
    refused(http.post(CHAT, content=body, headers={"Content-Type": "application/json"}))


def test_an_error_in_json_has_its_place(http: httpx2.Client) -> None:
    body = b'{"messages": [],\n "n": 2,}'
    answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert refused(answer)["message"].endswith("double quotes: line 2, column 9")


def test_a_number_that_no_answer_could_repeat(http: httpx2.Client) -> None:
    body = b'{"input": "say Hi", "metadata": {"a": [1e999]}}'
    answer = http.post("/v1/responses", content=body, headers={"Content-Type": "application/json"})
    assert "1e999 is too large a number" in refused(answer)["message"]


def test_a_lone_surrogate_is_survived(http: httpx2.Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}], "model": "\\udfff"}'
    answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)


def test_deep_and_large_bodies_are_refused(http: httpx2.Client, server: LiveServer) -> None:
    deep = b'{"a":' * 65 + b"1" + b"}" * 65
    error = refused(http.post(CHAT, content=deep))
    assert "nested more than 64 deep" in error["message"]
    refused(http.post(CHAT, content=b" " * 200_001), 413)

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    refused(http.post(CHAT, content=endless()), 413)


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    assert "/v1/nothing" in refused(http.get("/v1/nothing"), 404)["message"]
    refused(http.get(CHAT), 405)
    assert refused(http.post(CHAT, json={**HELLO, "model": "m"}), 404)["code"] == "model_not_found"


def test_the_version_is_the_packages(http: httpx2.Client) -> None:
    assert http.get("/version").json() == {"version": version("hybridmoe")}


def test_embeddings_are_not_pretended(http: httpx2.Client) -> None:
    error = refused(http.post("/v1/embeddings", json={"input": "x"}), 501)
    assert "not supported" in error["message"]


def test_another_hosts_page_cannot_pass_for_a_local_one(http: httpx2.Client) -> None:
    assert http.get("/health", headers={"Host": "localhost:99"}).status_code == 200
    for host in ("192.168.1.5:8000", "[fe80::1]:8000", "[::1]"):
        assert http.get("/health", headers={"Host": host}).status_code == 200  # no renaming
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[x]", ""):
        refused(http.get("/health", headers={"Host": host}), 403)


def test_text_there_and_back(http: httpx2.Client) -> None:
    text = "Hi °é <|im_end|>"
    tokens = http.post("/tokenize", json={"content": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    plain = http.post("/tokenize", json={"content": text, "parse_special": False}).json()
    assert plain["count"] > tokens["count"]
    for ids in (tokens["tokens"], plain["tokens"]):
        assert http.post("/detokenize", json={"tokens": ids}).json()["content"] == text
    pieces = http.post("/tokenize", json={"content": "abc", "with_pieces": True}).json()
    assert "".join(token["piece"] for token in pieces["tokens"]) == "abc"
    refused(http.post("/detokenize", json={"tokens": [10**9]}))
    refused(http.post("/tokenize", json={}))


def test_texts_far_beyond_the_context_are_refused(http: httpx2.Client, llm: FakeLLM) -> None:
    most = 4 * llm.context_tokens
    ids = [65] * (most + 1)
    text = "a b " * most
    turns = [{"role": "user", "content": text}]
    for path, body in (
        ("/tokenize", {"content": text}),
        ("/detokenize", {"tokens": ids}),
        ("/v1/completions", {"prompt": text}),
        (CHAT, {"messages": turns}),
        ("/v1/messages/count_tokens", {"model": "test", "messages": turns}),
    ):
        error = http.post(path, json=body).json()["error"]
        assert f"has more than {most} tokens" in error["message"], path
        assert error["n_prompt_tokens"] == most
    assert http.post("/detokenize", json={"tokens": ids[1:]}).status_code == 200


def test_metrics_add_up(http: httpx2.Client) -> None:
    def figures() -> dict[str, float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return {f"{s.name}{''.join(s.labels.values())}": s.value for s in samples}

    before = figures()
    body = {"messages": [{"role": "user", "content": "count 7"}]}
    usage = http.post(CHAT, json=body).json()["usage"]
    http.get("/nothing/at/all")
    after = figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("hybridmoe_generation_tokens_total") == 7
    assert grown("hybridmoe_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("hybridmoe_request_success_totalstop") == 1
    assert grown("hybridmoe_time_to_first_token_seconds_count") == 1
    assert grown("hybridmoe_inter_token_latency_seconds_count") == 6
    assert grown(f"hybridmoe_http_requests_total{CHAT}200") == 1
    assert grown("hybridmoe_http_requests_totalother404") == 1
    assert after["hybridmoe_kv_cache_usage_perc"] == 0.25


def test_while_the_model_loads(llm: FakeLLM) -> None:
    with live_server(None) as server, httpx2.Client(base_url=server.url, timeout=HANG_S) as http:
        server.service.models.slots[0].progress = 0.5
        answer = http.get("/health")
        assert answer.status_code == 503
        assert answer.json() == {"status": "loading", "progress": 0.5}
        for path, body in (("/v1/chat/completions", HELLO), ("/tokenize", {"content": "x"})):
            answer = http.post(path, json=body)
            assert refused(answer, 503)["message"] == "the model is loading"
            assert "retry-after" in answer.headers
        assert http.get("/metrics").status_code == 200
        server.service.attach(llm)  # type: ignore[arg-type]
        assert http.get("/health").json() == {"status": "ok"}
        assert http.post(CHAT, json=HELLO).status_code == 200


def test_keys_guard_all_but_the_pages(llm: FakeLLM) -> None:
    keys = ("one", "two")
    with (
        live_server(llm, api_keys=keys) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
    ):
        for path in ("/", "/docs", "/health", "/openapi.json", "/static/chat.js"):
            assert http.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/nothing"):
            error = refused(http.get(path), 401)
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        for headers in (
            {"Authorization": "Bearer one"}, {"authorization": "bearer two"}, {"x-api-key": "two"},
        ):  # fmt: skip
            assert http.get("/v1/models", headers=headers).status_code == 200
        for headers in (
            {"Authorization": "Bearer on"}, {"Authorization": "one"}, {"x-api-key": "one two"},
            {"Authorization": "Bearer \u00e9"},
        ):  # fmt: skip
            encoded = {name: value.encode() for name, value in headers.items()}
            refused(http.get("/v1/models", headers=encoded), 401)  # type: ignore[arg-type]


def test_keys_are_compared_whole() -> None:
    assert key_matches("two", ("one", "two"))
    assert not any(key_matches(given, ("one", "two")) for given in ("", "on", "onetwo", "\ud800"))


@pytest.mark.parametrize(
    "settings", [{"api_keys": ("é",)}, {"max_body_bytes": 0}, {"keep_alive_s": 0.0}]
)
def test_bad_settings_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(model_name="m", **settings)


def test_other_sites_may_read_answers_only_if_told_so(llm: FakeLLM, http: httpx2.Client) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in http.options(CHAT, headers=asked).headers
    with (
        live_server(llm, cors_origins=("https://a.example",), api_keys=("k",)) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as other,
    ):
        answer = other.options(CHAT, headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        # A refusal, too, must be readable by the page that gets it.
        refusal = other.post(CHAT, json=HELLO, headers={"Origin": "https://a.example"})
        assert refusal.status_code == 401
        assert refusal.headers["access-control-allow-origin"] == "https://a.example"


def test_the_page_is_small_when_compressed() -> None:
    static = Path(__file__).parent.parent.parent / "hybridmoe" / "serve" / "static"
    files = (path for path in static.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg"))
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 400_000


def test_pages_ask_nothing_of_other_hosts(http: httpx2.Client) -> None:
    static = Path(__file__).parent.parent.parent / "hybridmoe" / "serve" / "static"
    for path in ("/", "/docs"):
        answer = http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
    for path in ("/", "/docs", "/openapi.json", "/static/chat.js", "/health", "/nothing"):
        headers = http.get(path).headers
        for words in ("default-src 'self'", "base-uri 'none'"):
            assert words in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
    for file in (path for path in static.rglob("*") if path.is_file()):
        name = file.relative_to(static).as_posix()
        assert http.get(f"/static/{name}").status_code == 200
        if name.startswith("vendor/"):  # names namespaces; the page's tests watch its requests
            continue
        text = file.read_text(encoding="utf-8")
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name
        assert "https://" not in text, name


def test_every_route_is_documented(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["paths"].keys() == {
        "/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model}", "/v1/chat/completions",
        "/v1/completions", "/v1/responses", "/v1/responses/{response_id}", "/v1/messages",
        "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/v1/embeddings",
        "/tokenizer_info", "/version", "/v1/responses/compact",
        "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens",
        "/v1/responses/{response_id}/input_items",
        "/v1/conversations", "/v1/conversations/{conversation_id}",
        "/v1/conversations/{conversation_id}/items",
        "/v1/conversations/{conversation_id}/items/{item_id}",
        "/api/chat", "/api/generate", "/api/version", "/api/tags", "/api/ps", "/api/show",
        "/api/embed",
        "/completion", "/props", "/slots", "/apply-template", "/infill",
    }  # fmt: skip


def test_a_card_that_fails_ends_requests_with_503_and_refuses_others() -> None:
    losing = {"messages": [{"role": "user", "content": "lose the card"}]}
    with (
        live_server(FakeLLM()) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
    ):
        assert http.get("/health").status_code == 200
        for body in (losing, HELLO):
            error = refused(http.post(CHAT, json=body), 503)
            assert error["message"] == "the GPU failed: it is gone; restart to use it again"
            assert error["type"] == "server_error" and error["code"] == "device_failed"
        health = http.get("/health")
        assert health.status_code == 503
        assert health.json() == {"status": "failed", "message": error["message"]}
        assert http.get("/v1/models").status_code == 200


def test_the_model_is_listed_with_the_facts_of_its_memory_plan(
    server: LiveServer, llm: FakeLLM
) -> None:
    (listed,) = httpx2.get(f"{server.url}/v1/models", timeout=HANG_S).json()["data"]
    assert listed["meta"]["plan"] == llm.plan.facts()
    assert listed["meta"]["plan"]["num_ram_experts"] == llm.plan.num_experts


def test_many_clients_at_once_each_get_their_own_answer(server: LiveServer) -> None:
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        body = {"messages": [{"role": "user", "content": f"say number {i}"}], "stream": True}
        text = ""
        with (
            httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
            http.stream("POST", CHAT, json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    text += delta.get("content") or ""
        answers[i] = text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"number {i}" for i in range(12)}

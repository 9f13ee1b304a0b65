"""Lists of models: for OpenAI's, Anthropic's and ollama's clients, with aliases."""

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S

from hybridmoe.serve.model_list import model_list


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, model_aliases=("other",)) as server:
        yield server


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def test_openais_client_finds_each_name(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        listed = list(client.models.list())
        assert [one.id for one in listed] == ["test", "other"]
        assert listed[0].aliases == ["other"]  # type: ignore[attr-defined]
        for one in listed:
            assert one.object == "model" and one.root == "test"  # type: ignore[attr-defined]
            assert client.models.retrieve(one.id).id == one.id


def test_anthropics_client_finds_each_name(server: LiveServer) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="-") as client:
        page = client.models.list()
        assert [one.id for one in page] == ["test", "other"]
        assert (page.first_id, page.last_id, page.has_more) == ("test", "other", False)
        for one in page.data:
            assert one.type == "model" and one.display_name == "hybridmoe demo"
            assert one.created_at.utcoffset() is not None
            assert client.models.retrieve(one.id).id == one.id


def test_a_list_without_models() -> None:
    assert model_list([]).items() >= {"data": [], "first_id": None, "last_id": None}.items()


def test_a_card_has_the_facts_of_the_file(http: httpx2.Client, llm: FakeLLM) -> None:
    meta = http.get("/v1/models/test").json()["meta"]
    assert meta["size"] == llm.file.path.stat().st_size
    assert meta["n_params"] == sum(math.prod(t.shape) for t in llm.file.tensors.values())
    assert (meta["architecture"], meta["ftype"], meta["n_embd"]) == ("deepseek2", "Q4_K_M", 256)
    assert meta["capabilities"] == ["completion", "tools"]


def entry(http: httpx2.Client, path: str) -> Any:
    (only,) = http.get(path).json()["models"]
    return only


def test_ollamas_clients_find_the_model(http: httpx2.Client, llm: FakeLLM) -> None:
    listed = entry(http, "/api/tags")
    assert listed["name"] == listed["model"] == "test"
    assert listed["size"] == llm.file.path.stat().st_size and len(listed["digest"]) == 64
    assert datetime.fromisoformat(listed["modified_at"]).year > 2000
    details = listed["details"]
    assert (details["format"], details["family"]) == ("gguf", "deepseek2")
    assert details["quantization_level"] == "Q4_K_M"
    assert (
        details["parameter_size"]
        == f"{http.get('/v1/models/test').json()['meta']['n_params'] / 1e6:.1f}M"
    )
    loaded = entry(http, "/api/ps")
    assert loaded.items() >= {k: listed[k] for k in ("name", "digest", "details")}.items()
    ram = llm.plan.facts()["tiers"]["RAM"]["used_bytes"]
    assert (loaded["size"], loaded["size_vram"]) == (ram, 0)
    assert loaded["context_length"] == llm.context_tokens
    assert datetime.fromisoformat(loaded["expires_at"]).year > 2100


def test_a_model_is_shown_with_its_template_and_metadata(http: httpx2.Client, llm: FakeLLM) -> None:
    for body in ({"model": "test"}, {"name": "other"}, {"model": "test:latest"}):
        shown = http.post("/api/show", json=body).json()
        assert "<|im_middle|>" in shown["template"]
        info = shown["model_info"]
        assert info["general.architecture"] == "deepseek2"
        assert info["deepseek2.context_length"] == llm.config.context_tokens
        assert "tokenizer.ggml.tokens" not in info and "tokenizer.chat_template" not in info
        assert f"temperature {llm.sampling_params({}).temperature}" in shown["parameters"]
        assert shown["capabilities"] == ["completion", "tools"] and shown["license"] == "mit"
    answer = http.post("/api/show", json={"model": "none"})
    assert answer.status_code == 404 and "none" in answer.json()["error"]


def test_numbers_that_json_lacks_are_left_out(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"a.nan": math.nan, "b.list": [math.inf], "c.fine": [1.5]}
    monkeypatch.setattr(llm.file, "metadata", {**llm.file.metadata, **odd})
    with live_server(llm) as server:
        answer = httpx2.post(f"{server.url}/api/show", json={"model": "test"}, timeout=HANG_S)
    info = answer.json()["model_info"]
    assert "a.nan" not in info and "b.list" not in info and info["c.fine"] == [1.5]


def test_embeddings_are_not_pretended(http: httpx2.Client) -> None:
    for path in ("/api/embed", "/api/embeddings"):
        answer = http.post(path, json={"model": "test", "input": "x"})
        assert answer.status_code == 501 and "not supported" in answer.json()["error"]


def test_a_model_that_is_not_loaded_is_described_and_left_so(llm: FakeLLM) -> None:
    with (
        live_server(llm) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
    ):
        size = entry(http, "/api/tags")["size"]
        server.service.models.slot("test").model = None
        assert entry(http, "/api/tags")["size"] == size
        assert http.get("/api/ps").json() == {"models": []}
        shown = http.post("/api/show", json={"model": "test"}).json()
        assert shown["template"] == "" and shown["details"]["family"] == "deepseek2"
        assert http.get("/props").json() == {"model_alias": "test", "is_sleeping": True}
        assert http.get("/slots").json() == []


def test_no_model_is_described_before_one_is_loaded() -> None:
    with live_server(None) as server, httpx2.Client(base_url=server.url, timeout=HANG_S) as http:
        for path in ("/api/tags", "/api/ps", "/props", "/slots", "/v1/models"):
            assert http.get(path).status_code == 503, path
        assert http.post("/api/show", json={"model": "test"}).status_code == 503

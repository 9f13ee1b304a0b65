"""Front of replicas: routing by prefix, retries, what is stored where, health, metrics, access."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_replicas import FakeReplicas
from starlette.types import Message, Receive, Scope, Send

from hybridmoe.errors import ConfigError
from hybridmoe.serve import ServeConfig, Service, create_app, stored_id
from hybridmoe.serve.replicas.asgi_call import ForwardedRequest, call_app
from hybridmoe.serve.replicas.forward import ForwardMiddleware
from hybridmoe.serve.replicas.options import parse_options
from hybridmoe.serve.replicas.prefix_index import PrefixIndex
from hybridmoe.serve.replicas.prompt_keys import prompt_keys

CHAT = "/v1/chat/completions"
A, B = "a" * 8, "b" * 8  # tags


@asynccontextmanager
async def fronted(
    replicas: FakeReplicas, *, can_sleep: bool = False, hold_s: float = 60.0, **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    service = Service(ServeConfig(**{"model_name": "test", "keep_alive_s": 0.05} | settings))
    innermost = partial(
        ForwardMiddleware, replicas=replicas, service=service, can_sleep=can_sleep, hold_s=hold_s
    )
    transport = httpx2.ASGITransport(create_app(service, innermost=innermost))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def said(*texts: str, **more: Any) -> dict[str, Any]:
    """Body of a chat request: a conversation of these texts."""
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)],
        **more,
    }


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_a_conversation_stays_at_its_replica_and_new_ones_go_elsewhere_under_load() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        async with fronted(replicas) as client:
            busy = asyncio.create_task(client.post(CHAT, json=said("slow 20")))
            while not replicas.asked:
                await asyncio.sleep(0.001)
            first = replicas.asked[0]
            await client.post(CHAT, json=said("say one"))
            assert replicas.asked[1] != first
            more = said("slow 20", "AAA", "say two")  # its replica is the busier one
            assert (await client.post(CHAT, json=more)).status_code == 200
            assert replicas.asked[2] == first
            await busy

    run(test)


def test_a_common_system_text_is_no_conversation() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        system = {"role": "system", "content": "Be brief."}
        async with fronted(replicas) as client:
            body = said("slow 20")
            body["messages"].insert(0, system)
            busy = asyncio.create_task(client.post(CHAT, json=body))
            while not replicas.asked:
                await asyncio.sleep(0.001)
            other = said("say one")
            other["messages"].insert(0, system)
            await client.post(CHAT, json=other)
            await busy
        assert set(replicas.asked) == {A, B}

    run(test)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_whose_replica_dies_before_its_answer_goes_to_another(is_stream: bool) -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        replicas.messages_before_loss[A] = 1  # after the response's head
        async with fronted(replicas) as client:
            response = await client.post(CHAT, json=said("say Hi", stream=is_stream))
        assert response.status_code == 200 and '"stop"' in response.text
        assert "error" not in response.text
        assert replicas.asked == [A, B]

    run(test)


def test_comments_are_no_answer_that_has_begun() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        replicas.messages_before_loss[A] = 3  # the head and two comments, while a prompt is read
        async with fronted(replicas) as client:
            response = await client.post(CHAT, json=said("wait", stream=True))
        assert "error" not in response.text and response.text.endswith("data: [DONE]\n\n")
        assert replicas.asked == [A, B]

    run(test)


def test_a_stream_that_has_begun_ends_with_an_error_of_its_api() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A)
        replicas.messages_before_loss[A] = 3
        async with fronted(replicas) as client:
            chat = await client.post(CHAT, json=said("count 9", stream=True))
            replicas.live = frozenset({A})
            claude = said("count 9", stream=True, max_tokens=9, model="test")
            anthropic = await client.post("/v1/messages", json=claude)
        *_, error, done = chat.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
        assert done == "data: [DONE]"
        assert anthropic.text.strip().split("\n\n")[-1].startswith("event: error\n")
        assert replicas.asked == [A, A]  # nothing was tried again

    run(test)


def test_what_is_stored_is_asked_of_its_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        async with fronted(replicas) as client:
            for tag in (A, B):  # in one process, which has one tag at a time
                stored_id.set_id_tag(tag)
                replicas.live = frozenset({tag})
                first = (await client.post("/v1/responses", json={"input": "say Hi"})).json()
                made = (await client.post("/v1/conversations", json={})).json()["id"]
                assert stored_id.tag_of(first["id"]) == tag
                replicas.live = frozenset({A, B})
                replicas.asked.clear()
                body = {"input": "say Ho", "previous_response_id": first["id"]}
                assert (await client.post("/v1/responses", json=body)).status_code == 200
                assert (await client.get(f"/v1/responses/{first['id']}")).json() == first
                assert replicas.asked == [tag, tag]
                body = {"input": "say Ho", "conversation": {"id": made}}
                replicas.asked.clear()
                assert (await client.post("/v1/responses", json=body)).status_code == 200
                assert replicas.asked == [tag]
            replicas.live = frozenset({A})
            replicas.asked.clear()
            gone = await client.get(f"/v1/responses/{first['id']}")
            assert gone.status_code == 404 and "does not run" in gone.json()["error"]["message"]
            assert replicas.asked == []

    monkeypatch.setattr(stored_id, "_tag", "")
    run(test)


def test_health_counts_replicas_and_pages_wake_none() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        async with fronted(replicas) as client, fronted(replicas, can_sleep=True) as sleeper:
            assert (await client.get("/health")).json() == {"status": "ok", "replicas": 2}
            replicas.live = frozenset()
            loading = await client.get("/ready")
            assert (loading.status_code, loading.json()["status"]) == (503, "loading")
            assert (await sleeper.get("/health")).json() == {"status": "ok", "replicas": 0}
            assert "<title>" in (await client.get("/")).text
            assert (await client.get("/static/chat.js")).status_code == 200
        assert replicas.asked == []

    run(test)


def test_metrics_are_those_of_every_replica() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A, B)
        async with fronted(replicas) as client:
            await client.post(CHAT, json=said("say Hi"))
            text = (await client.get("/metrics")).text
        name = "hybridmoe_num_requests_running"
        assert text.count(f"# TYPE {name} gauge") == 1
        for tag in (A, B):
            assert f'{name}{{replica="{tag}"}} 0.0' in text
        assert 'replica="front"' in text

    run(test)


def test_refusals_reach_no_replica() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A)
        async with fronted(replicas, api_keys=("secret",)) as client:
            assert (await client.post(CHAT, json=said("say Hi"))).status_code == 401
            assert replicas.asked == []
            headers = {"Authorization": "Bearer secret", "Content-Encoding": "gzip"}
            bad = await client.post(CHAT, content=b"no gzip", headers=headers)
            assert bad.status_code == 400
            assert replicas.asked == []
            packed = gzip.compress(json.dumps(said("say Hi")).encode())
            headers["Content-Type"] = "application/json"
            assert (await client.post(CHAT, content=packed, headers=headers)).status_code == 200
            del headers["Content-Encoding"]
            missing = await client.get("/nope", headers=headers)
            assert missing.json()["error"]["message"] == "no such path: /nope"

    run(test)


def test_requests_wait_for_a_replica_with_comments_and_not_for_ever() -> None:
    async def test() -> None:
        replicas = FakeReplicas(A)
        replicas.live = frozenset()
        async with fronted(replicas, can_sleep=True) as client:
            waiting = asyncio.create_task(client.post(CHAT, json=said("say Hi", stream=True)))
            while not replicas.num_held:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.2)  # a comment is due before
            replicas.live = frozenset({A})
            replicas.wakes.set()
            response = await waiting
        assert response.text.startswith(": keep-alive\n\n") and "[DONE]" in response.text
        replicas.live = frozenset()
        replicas.wakes.clear()
        async with fronted(replicas, can_sleep=True, hold_s=0.01) as client:
            late = await client.post(CHAT, json=said("say Hi"))
        assert (late.status_code, late.json()["error"]["code"]) == (503, "overloaded")
        assert late.headers["retry-after"] == "5"

    run(test)


def test_a_caller_that_leaves_is_a_client_that_disconnects() -> None:
    seen: list[Message] = []

    async def endless(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append(await receive())
        seen.append(await receive())

    async def failing(*_: Any) -> None:
        raise ValueError("broken")

    async def test() -> None:
        request = ForwardedRequest({"type": "http"}, b"body")
        call = call_app(endless, request)
        assert (await anext(call))[0]["status"] == 200
        await call.aclose()
        assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
        with pytest.raises(ValueError, match="broken"):
            await anext(call_app(failing, request))

    run(test)


def test_keys_grow_with_a_conversation_and_leave_out_what_clients_move() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    header = "x-anthropic-billing-header: cc_version=1; cch={};\n"

    def body(number: int, *texts: str) -> dict[str, Any]:
        turns = said(*texts)
        turns["messages"][-1]["content"] = [{"type": "text", "text": texts[-1]}]
        turns["messages"][-1] |= mark if number % 2 else {}
        return {**turns, "system": header.format(number) + "Be brief.", "temperature": number}

    first = prompt_keys(body(1, "Hi"))
    assert len(first) == 2
    assert prompt_keys(body(2, "Hi")) == first
    longer = said("Hi", "Hello.", "And?")
    longer["messages"][0]["content"] = [{"type": "text", "text": "Hi"}]
    longer["system"] = header.format(3) + "Be brief."
    assert prompt_keys(longer)[:2] == first and len(prompt_keys(longer)) == 4
    assert prompt_keys(said("Ho"))[1] != prompt_keys(said("Hi"))[1]
    text = "word " * 1000
    assert prompt_keys({"prompt": text})[:8] == prompt_keys({"prompt": text + "more"})[:8]
    ids = list(range(1024))
    assert len(prompt_keys({"prompt": ids})) == 3
    assert prompt_keys({"input": "Hi"}) and prompt_keys({"model": "x"}) == []
    for odd in (7, {"a": 1}, [1, "b"], [{}, {"role": 3}], [{"content": [None, 1, {"text": 5}]}]):
        assert prompt_keys({"messages": odd, "system": odd, "tools": odd})


def test_index_forgets_the_oldest_keys() -> None:
    index = PrefixIndex(most_keys=3)
    index.note([b"1", b"2"], A)
    index.note([b"1", b"3"], B)
    assert index.longest([b"1", b"2"], {A, B}) == {A: 2, B: 1}
    assert index.longest([b"1", b"2"], {B}) == {B: 1}
    index.note([b"4"], B)
    assert index.longest([b"1", b"2"], {A, B}) == {A: 1, B: 1}


def test_options_are_text_or_yaml(tmp_path: Path) -> None:
    options = parse_options({"min_replicas": "0", "max_replicas": 4, "num_threads": "2"})
    assert (options.min_replicas, options.most_replicas, options.num_threads) == (0, 4, 2)
    assert options.most_ongoing == 2 * options.max_running
    assert options.names == ("hybridmoe-demo",)
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    config = parse_options({"api_key_file": str(keys), "cors_origins": "a,b"}).front_config()
    assert config.api_keys == ("secret",) and config.cors_origins == ("a", "b")
    for arguments, message in (
        ({"min_replicas": "many"}, r"min_replicas='many': expected a number"),
        ({"min_replicas": -1}, r"min_replicas=-1: expected a whole number from 0 on"),
        ({"min_replicas": 3, "max_replicas": 2}, r"max_replicas=2: expected min_replicas=3 or"),
        ({"expert_parallel": "true"}, r"expert_parallel: a replica is one process"),
        ({"expert_parallel": "2"}, r"expert_parallel='2': expected True or False"),
        ({"trace": "routes.npz"}, r"trace: replicas of one host would write the same file"),
        ({"threads": 2}, r"unknown option 'threads': did you mean num_threads\?"),
        ({"model": "nothing-like-this"}, "nothing-like-this"),
        ({"model": "/no/such.gguf"}, r"model=/no/such.gguf: no such file; expected on every host"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_options(arguments)

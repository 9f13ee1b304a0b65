"""Forms of HTTP requests: HEAD, stray slashes, ids, content types and encodings, preflights."""

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "say Hi"}]}
BODY = json.dumps(HELLO).encode()
JSON = {"Content-Type": "application/json"}
PAGE = "https://a.example"


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, cors_origins=(PAGE,), api_keys=("k",), max_body_bytes=100_000) as server:
        yield server


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    keys = {"Authorization": "Bearer k"}
    with httpx2.Client(base_url=server.url, timeout=HANG_S, headers=keys) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/docs", "/static/chat.js"])
def test_head_is_get_without_the_body(http: httpx2.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]
    assert http.head("/v1/nothing").status_code == 404
    assert http.head(CHAT).status_code == 405


def test_a_base_url_may_end_in_a_slash(http: httpx2.Client) -> None:
    for path in (f"{CHAT}/", f"/{CHAT}"):
        answer = http.post(f"{http.base_url.copy_with(path=path)}", json=HELLO)
        assert answer.status_code == 200, path
    assert http.get("/health/", headers={"Authorization": ""}).status_code == 200
    assert http.get("/v1/models/", headers={"Authorization": ""}).status_code == 401
    assert http.get("/static/").status_code == 404


def test_each_request_has_an_id(http: httpx2.Client) -> None:
    for path, status in (("/health", 200), ("/v1/nothing", 404)):
        ids = set()
        for given in ("my-id/7", "", "x" * 129, "a b", None):
            headers = {} if given is None else {"X-Request-Id": given}
            answer = http.get(path, headers=headers)
            assert answer.status_code == status
            made = answer.headers["x-request-id"]
            assert answer.headers["request-id"] == made
            assert (made == given) == (given == "my-id/7")
            ids.add(made)
        assert len(ids) == 5
    assert http.get("/v1/models", headers={"Authorization": ""}).headers["x-request-id"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "Content-Type is missing; expected application/json"),
        ("text/plain", "Content-Type is 'text/plain'; expected application/json"),
        ("text/plain; application/json", "expected application/json"),
        ("multipart/form-data; boundary=x", "expected application/json"),
        ("application/x-www-form-urlencoded", "as curl -d sends it; expected application/json"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/tokenize"])
def test_other_content_types_are_named(
    http: httpx2.Client, path: str, given: str | None, words: str
) -> None:
    answer = http.post(path, content=BODY, headers={} if given is None else {"Content-Type": given})
    assert answer.status_code == 415
    assert words in answer.json()["error"]["message"]
    assert answer.headers["accept-post"] == "application/json"


def test_json_by_its_other_names(http: httpx2.Client) -> None:
    for kind in ("Application/JSON; charset=utf-8", "application/problem+json"):
        assert http.post(CHAT, content=BODY, headers={"Content-Type": kind}).status_code == 200


def test_compressed_requests(http: httpx2.Client) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    answer = http.post(CHAT, content=gzip.compress(BODY), headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"
    assert http.post(CHAT, content=BODY, headers=headers).status_code == 400
    assert (
        http.post(CHAT, content=gzip.compress(bytes(100_001)), headers=headers).status_code == 413
    )
    answer = http.post(CHAT, content=BODY, headers={**JSON, "Content-Encoding": "br"})
    assert answer.status_code == 415 and "zstd" in answer.headers["accept-encoding"]


def preflight(http: httpx2.Client, origin: str) -> Any:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    return http.options(CHAT, headers=asked)


def test_pages_of_public_sites_reach_a_private_address_if_told_so(http: httpx2.Client) -> None:
    answer = preflight(http, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-origin" not in preflight(http, "https://b.example").headers
    seen = http.get("/health", headers={"Origin": PAGE}).headers["access-control-expose-headers"]
    assert "x-request-id" in seen


def test_a_stalled_upload_is_answered_and_closed(llm: FakeLLM) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with live_server(llm, body_idle_timeout_s=0.01) as server:
        for start in (b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S) as link:
                link.sendall(head + start)
                data = b""
                while piece := link.recv(1 << 16):
                    data += piece
            assert data.startswith(b"HTTP/1.1 408") and b"did not come in time" in data

"""Hostile response formats over HTTP: refused or served, while other requests continue."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hostile_grammars import lark_chain, schema_chain, slow_lark
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually

import hybridmoe

CHAIN = schema_chain(3000)
PARAMETERS = {"type": "object", "properties": {"x": CHAIN}, "$defs": CHAIN["$defs"]}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with hybridmoe.load(context_tokens=512) as llm, live_server(llm) as server:
        yield server


def post(server: LiveServer, path: str, body: dict[str, Any]) -> tuple[int, str]:
    answer = httpx2.post(
        f"{server.url}/v1/{path}", json={"model": "test", "max_tokens": 4, **body}, timeout=HANG_S
    )
    error = answer.json().get("error") or {}
    return answer.status_code, error.get("message", "")


def chat(server: LiveServer, **options: Any) -> tuple[int, str]:
    return post(server, "chat/completions", {"messages": USER, **options})


def form(kind: str, value: Any) -> dict[str, Any]:
    return {"messages": USER, "response_format": {"type": kind, kind: value}}


USER = [{"role": "user", "content": "Hello"}]
FORMAT = {"type": "json_schema", "name": "x", "schema": CHAIN}
FUNCTION = {"name": "f", "strict": True, "parameters": PARAMETERS}
STRICT = {"type": "function", "function": FUNCTION}
TOOL = {"name": "f", "input_schema": PARAMETERS}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", form("json_schema", {"name": "x", "schema": CHAIN})),
        ("chat/completions", form("grammar", lark_chain(3000))),
        ("chat/completions", {"messages": USER, "tools": [STRICT]}),
        ("messages", {"messages": USER, "tools": [TOOL], "tool_choice": {"type": "any"}}),
        ("responses", {"input": "Hello", "text": {"format": FORMAT}, "max_output_tokens": 16}),
    ],
    ids=["schema", "grammar", "tools", "anthropic", "responses"],
)  # fmt: skip
def test_what_nests_by_references_is_refused(
    server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    status, message = post(server, path, body)
    assert status == 400
    assert message.endswith("nested more than 2000 deep") or "context length" in message  # tools
    assert chat(server) == (200, "")


def test_a_grammar_whose_client_has_left_is_not_compiled_any_further(server: LiveServer) -> None:
    wanted = form("grammar", slow_lark(1900))
    body = json.dumps({"model": "test", "max_tokens": 4, **wanted}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    )
    trial = server.service.models.slot("test").model.grammar.process
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        eventually(lambda: trial.is_busy)
    eventually(lambda: not trial.is_busy)
    assert trial.pid is None  # ended, not done: a grammar that is refused leaves it there
    assert chat(server) == (200, "")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('start: A\nA: "x" & "y"', "grammar: no text fits it"),
        ("start: @format", "grammar: no text fits it"),
        ("start: foo", 'unknown name: "foo"'),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_no_text_can_keep_is_refused_before_the_queue(
    server: LiveServer, grammar: str, message: str, is_stream: bool
) -> None:
    form = {"type": "grammar", "grammar": grammar}
    status, told = chat(server, response_format=form, stream=is_stream)
    assert status == 400 and message in told


def test_a_header_names_what_was_left_out_of_schemas(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "any"}}}
    left_out = "f: $.properties.a.not, f: $.properties.b.type"
    function = {"name": "f", "parameters": schema}
    tool = {"type": "function", "function": {**function, "strict": True}}
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("chat/completions", {"messages": USER, "tools": [tool]}, left_out),
        ("chat/completions", {"messages": USER, "tools": [tool], "stream": True}, left_out),
        (
            "messages",
            {
                "messages": USER,
                "tools": [{"name": "f", "input_schema": schema}],
                "tool_choice": {"type": "any"},
            },
            left_out,
        ),
        (
            "responses",
            {"input": "Hi", "tools": [{"type": "function", "strict": True, **function}]},
            left_out,
        ),
        (
            "completions",
            {
                "prompt": "Hi",
                "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
            },
            left_out.replace("f: ", ""),
        ),
        ("chat/completions", {"messages": USER}, ""),
    ]
    for path, body, expected in bodies:
        body = {"model": "test", "max_tokens": 4, **body}
        if path == "responses":
            body["max_output_tokens"] = 16
        answer = httpx2.post(f"{server.url}/v1/{path}", json=body, timeout=HANG_S)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("x-relaxed-schema", "") == expected, path


def test_an_error_of_a_schema_names_its_tool_and_path(server: LiveServer) -> None:
    none = {"type": "integer", "minimum": 2, "maximum": 1}
    schema = {"type": "object", "properties": {"a": none}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    status, message = chat(server, tools=[tool])
    assert status == 400
    assert message.startswith("tools: f: $.properties.a: ")

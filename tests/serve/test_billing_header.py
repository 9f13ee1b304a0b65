"""Claude Code's billing header, whose number changes with each request, in every API."""

from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer

from hybridmoe.serve.billing_header import without_billing_header

HEADER = "x-anthropic-billing-header: cc_version=2.1.1.a1b; cc_entrypoint=cli; cch=0a1b2;"
TEXT = "You are brief: x-anthropic-billing-header: cch=1; is a header.\nBe kind."


def parts(*texts: str, kind: str = "text") -> list[dict[str, str]]:
    return [{"type": kind, "text": text} for text in texts]


@pytest.mark.parametrize(
    "system",
    [
        TEXT,
        f"{HEADER}\n{TEXT}",
        f"{HEADER}\n\n{TEXT}",
        f"{HEADER}{TEXT}",
        f"{HEADER} {TEXT}",
        f"{HEADER.rstrip(';')}\r\n{TEXT}",
        f"\n{HEADER}\n{TEXT}",
        parts(TEXT),
        parts(HEADER, TEXT),
    ],
)
def test_the_prompt_is_the_same_without_it(system: Any, server: LiveServer, llm: FakeLLM) -> None:
    user = {"role": "user", "content": "say Hi"}
    wanted = f"system<|im_middle|>{TEXT}<|im_end|>"
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/messages", {"system": system, "messages": [user], "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": system}, user]}),
        ("/v1/chat/completions", {"messages": [{"role": "developer", "content": system}, user]}),
    ]
    if isinstance(system, str):
        requests.append(("/v1/responses", {"instructions": system, "input": "say Hi"}))
        requests.append(("/api/chat", {"messages": [{"role": "system", "content": system}, user]}))
    else:
        items = [
            {"role": "developer", "content": parts(*(p["text"] for p in system), kind="input_text")}
        ]
        requests.append(("/v1/responses", {"input": [*items, user]}))
    for path, body in requests:
        answer = httpx2.post(server.url + path, json={"model": "", "stream": False, **body})
        assert answer.status_code == 200, answer.text
        prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False)
        assert wanted in prompt, path


def test_only_the_first_system_messages_lose_it() -> None:
    system, header = (
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": HEADER},
    )
    user = {"role": "user", "content": HEADER}
    assert without_billing_header([header, system, user, header]) == [system, user, header]
    empty = {"role": "system", "content": ""}
    assert without_billing_header([empty, user]) == [empty, user]
    odd = {"role": "system", "content": [None, {"type": "text", "text": 5}]}
    assert without_billing_header([odd, {"content": 5}]) == [odd, {"content": 5}]
    other = {"role": "system", "content": "x-anthropic-notes: are=kept;"}
    assert without_billing_header([other]) == [other]

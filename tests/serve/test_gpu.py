"""The endpoint on a GPU that fails: requests end, later ones are refused, the server stays up."""

from typing import Any

import httpx2
import pytest
from live_server import live_server
from waiting import HANG_S

import hybridmoe
from hybridmoe.experts.backend import CpuExperts

QUESTION: dict[str, Any] = {
    "model": "test",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 4,
}


def test_a_lost_card_is_a_503_in_each_apis_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nAdvice")

    with (
        hybridmoe.load(context_tokens=256, device="cpu") as llm,
        live_server(llm) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as client,
    ):
        assert client.get("/health").json() == {"status": "ok"}
        monkeypatch.setattr(CpuExperts, "begin_step", fail)
        lost = "the GPU failed: CUDA error: an illegal memory access was encountered; restart"
        first = client.post("/v1/chat/completions", json=QUESTION)
        assert first.status_code == 503 and lost in first.json()["error"]["message"]
        later = client.post("/v1/chat/completions", json=QUESTION)
        assert later.status_code == 503
        error = later.json()["error"]
        assert error["message"].startswith(lost) and error["code"] == "device_failed"
        other = client.post("/v1/messages", json=QUESTION)
        assert other.status_code == 503 and lost in other.json()["error"]["message"]
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        assert client.get("/metrics").status_code == 200

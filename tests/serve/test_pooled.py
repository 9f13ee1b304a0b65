"""The endpoint while a host with experts is away: degraded, and whole again without a restart."""

from typing import Any

import httpx2
from fake_engine import FakeLLM
from live_server import live_server
from waiting import HANG_S

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "say hello"}]}
AWAY = "rank 1 (b) is away: its connection is closed"


def test_a_host_that_is_away_is_a_503_that_passes(llm: FakeLLM) -> None:
    with (
        live_server(llm) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as client,
    ):
        assert client.get("/ready").json() == {"status": "ok"}
        llm.engine.outage = AWAY
        try:
            health, ready = client.get("/health"), client.get("/ready")
            assert (health.status_code, ready.status_code) == (200, 503)  # no restart mends it
            assert health.json() == ready.json() == {"status": "degraded", "message": AWAY}
            refused = client.post("/v1/chat/completions", json=QUESTION)
            assert refused.status_code == 503 and "Retry-After" in refused.headers
            error = refused.json()["error"]
            assert (error["message"], error["code"]) == (AWAY, "host_away")
        finally:
            llm.engine.outage = None
        assert client.get("/ready").json() == {"status": "ok"}
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200

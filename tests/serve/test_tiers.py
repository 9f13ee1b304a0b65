"""The endpoint on a model larger than its RAM: a failing disk fails one request only."""

import os
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live_server import live_server
from waiting import HANG_S

import hybridmoe
from hybridmoe.demo import demo_path

QUESTION: dict[str, Any] = {
    "model": "test",
    "messages": [{"role": "user", "content": "What is 47 + 38?"}],
    "temperature": 0.0,
    "max_tokens": 40,
}


def counts(url: str) -> dict[str, float]:
    text = httpx2.get(f"{url}/metrics", timeout=HANG_S).text
    found = re.findall(r"^hybridmoe_(expert_\w+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("stream", [False, True])
def test_a_shortened_file_ends_requests_but_not_the_server(tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "model.gguf"
    content = demo_path().read_bytes()
    path.write_bytes(content)
    with (
        hybridmoe.load(path, context_tokens=512, expert_ram="2MiB") as llm,
        live_server(llm) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as client,
    ):

        def ask(**more: Any) -> httpx2.Response:
            return client.post("/v1/chat/completions", json=QUESTION | more)

        answer = ask()
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].endswith("85")
        os.truncate(path, len(content) // 50)
        failed = ask(stream=stream)
        assert failed.status_code == (200 if stream else 500)
        assert "model.gguf: tensor blk." in failed.text and "the file ends at" in failed.text
        assert client.get("/health").status_code == 200
        with open(path, "r+b") as file:
            file.write(content)
        changed = ask()  # whatever it holds now
        assert changed.status_code == 500
        assert "the file was changed after it was opened; load it again" in changed.text
        assert client.get("/health").status_code == 200
        stats = llm.expert_stats()
        found = counts(server.url)
        assert found["expert_hits_total"] == stats.counters.hits > 0
        assert found["expert_misses_total"] == stats.counters.misses > 0
        assert found["expert_uploads_total"] == stats.counters.uploads > 0
        assert found["expert_evictions_total"] == stats.counters.evictions > 0
        assert found["expert_read_bytes_total"] == stats.counters.bytes_read > 0
        assert found["expert_slots"] == found["expert_slots_used"] == stats.num_slots


def test_without_a_cache_no_counts_are_shown() -> None:
    with hybridmoe.load(context_tokens=256) as llm, live_server(llm) as server:
        assert counts(server.url) == {}

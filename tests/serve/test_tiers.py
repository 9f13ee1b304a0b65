"""The endpoint on a model larger than its RAM: a failing disk fails one request only."""

import os
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_engine import FakeEngine
from live_server import live_server
from waiting import HANG_S

import hybridmoe
from hybridmoe.demo import demo_path
from hybridmoe.experts.stats import ExpertCounters, ExpertStats
from hybridmoe.serve.metrics import Metrics

QUESTION: dict[str, Any] = {
    "model": "test",
    "messages": [{"role": "user", "content": "What is 47 + 38?"}],
    "temperature": 0.0,
    "max_tokens": 40,
}


def counts(url: str) -> dict[str, float]:
    """Metrics of experts; `expert_hits_total RAM` is that of a tier."""
    return parsed(httpx2.get(f"{url}/metrics", timeout=HANG_S).text)


def parsed(text: str) -> dict[str, float]:
    line = r'^hybridmoe_(expert_\w+)(?:\{tier="(\w+)"\})? (\S+)$'
    found = re.findall(line, text, re.MULTILINE)
    return {f"{name} {tier}".rstrip(): float(value) for name, tier, value in found}


def test_each_tier_has_its_counts() -> None:
    ram = ExpertStats(
        2, 1, 8, 90, ExpertCounters(3, 1, 5, 4, 8, 3, bytes_read=500, read_wait_s=0.5)
    )
    both = ExpertStats(4, 3, 8, 100, ExpertCounters(6, 4, 2, 7, late=9), place="VRAM", below=ram)
    engine = FakeEngine(None, 16)
    engine.experts = both
    found = parsed(Metrics(engine.stats).render().decode())
    assert {name: found[name] for name in found if " " in name} == {
        "expert_slots VRAM": 4, "expert_slots RAM": 2,
        "expert_slots_used VRAM": 3, "expert_slots_used RAM": 1,
        "expert_accesses_total VRAM": 6, "expert_accesses_total RAM": 3,
        "expert_accesses_total disk": 1,
        "expert_hits_total VRAM": 6, "expert_hits_total RAM": 3,
        "expert_misses_total VRAM": 4, "expert_misses_total RAM": 1,
        "expert_uploads_total VRAM": 2, "expert_uploads_total RAM": 5,
        "expert_evictions_total VRAM": 7, "expert_evictions_total RAM": 4,
        "expert_promoted_total VRAM": 0, "expert_promoted_total RAM": 8,
        "expert_returned_total VRAM": 0, "expert_returned_total RAM": 3,
    }  # fmt: skip
    assert found["expert_read_bytes_total"] == 500
    assert found["expert_read_wait_seconds_total"] == 0.5
    assert found["expert_late_hits_total"] == 9


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

        answer = ask(return_experts=True)
        assert answer.status_code == 200
        tiers = [layer for token in answer.json()["choices"][0]["expert_tiers"] for layer in token]
        assert set("".join(tiers)) == {"R", "D"}
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
        assert found["expert_hits_total RAM"] == stats.counters.hits > 0
        assert found["expert_accesses_total disk"] == stats.counters.misses > 0
        assert found["expert_uploads_total RAM"] == stats.counters.uploads > 0
        assert found["expert_evictions_total RAM"] == stats.counters.evictions > 0
        assert found["expert_read_bytes_total"] == stats.counters.bytes_read > 0
        slots = found["expert_slots RAM"], found["expert_slots_used RAM"]
        assert slots == (stats.num_slots, stats.num_slots)


def test_without_a_cache_no_counts_are_shown() -> None:
    with hybridmoe.load(context_tokens=256) as llm, live_server(llm) as server:
        assert counts(server.url) == {}

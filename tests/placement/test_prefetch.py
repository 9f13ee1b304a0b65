"""Prefetch hints are decided at load, unless a number is given; responses are the same."""

from typing import Any

import pytest

import hybridmoe
from hybridmoe.placement import prefetch
from hybridmoe.planning.prefetch_gain import ReadAhead

CACHE = {"context_tokens": 256, "device": "cpu", "expert_ram": "12MiB"}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}


def decided(monkeypatch: pytest.MonkeyPatch, found: ReadAhead, disk: float | None = 2e9) -> None:
    monkeypatch.setattr(prefetch, "measure_disk", lambda paths, seconds: disk)
    monkeypatch.setattr(prefetch, "read_ahead_of", lambda plan, rates, hits: found)


def run(**options: Any) -> tuple[list[int], int, list[str]]:
    """Tokens, experts that had a hint, and notes on prefetch."""
    with hybridmoe.load(**CACHE, **options) as llm:
        ids = llm.generate("Once upon", **GREEDY).token_ids
        stats = llm.expert_stats()
        assert stats is not None and stats.counters.misses > 0
        notes = [note for note in llm.notes if "prefetch" in note]
        assert llm.plan.disk_cache is not None
        assert llm.plan.disk_cache.num_ahead == (options.get("expert_prefetch") or 0)
        return ids, stats.counters.hinted, notes


def test_experts_are_read_ahead_where_that_is_predicted_to_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = run(expert_prefetch=0)
    assert off[1:] == (0, []), "nothing was asked for, nothing is said"
    decided(monkeypatch, ReadAhead(2, 0.07))
    ids, hinted, notes = run()
    assert ids == off[0] and hinted > 0
    assert len(notes) == 1 and notes[0].startswith("expert prefetch: up to 2 of the next layer")
    assert "(disk 2.00 GB/s, memory " in notes[0]


def test_nothing_is_read_ahead_where_that_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, ReadAhead(0, -0.2))
    _, hinted, notes = run()
    assert hinted == 0 and len(notes) == 1 and "off, since it would cost 20 %" in notes[0]


def test_a_number_that_is_given_is_obeyed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, ReadAhead(0, -0.2))
    _, hinted, notes = run(expert_prefetch=1)
    assert hinted > 0 and notes == []


def test_a_disk_that_cannot_be_measured_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, ReadAhead(2, 0.07), disk=None)
    assert run()[1:] == (0, [])

"""`--trace`: a run writes down what it did, and the simulator counts what the cache counted."""

from pathlib import Path

import numpy as np
import pytest

from hybridmoe import load
from hybridmoe.cachebench.simulator import EVICTIONS, HITS, MISSES, UPLOADS, requests_of, simulate
from hybridmoe.cli import app
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import read_trace

ASK = [{"role": "user", "content": "Spell the word lantern."}]


def test_a_trace_has_every_token_and_changes_nothing(tmp_path: Path) -> None:
    with load() as llm:
        plain = llm.chat(ASK, temperature=0)
    with load(trace=tmp_path / "t") as llm:
        traced = llm.chat(ASK, temperature=0)
        llm.chat(ASK, temperature=0)  # its prompt is found in the cache, but for its end
        prompt = llm.encode_chat(ASK)
    assert traced.text == plain.text
    trace = read_trace(tmp_path / "t")
    first = trace.conversations == trace.conversations[0]
    assert len(set(trace.conversations)) == 2
    assert (first & (trace.phases == 0)).sum() == len(prompt)
    assert (~first).sum() < first.sum()
    assert trace.ids.min() >= 0 and trace.ids.max() < trace.num_experts
    assert np.allclose(trace.weights.astype(float).sum(2), trace.weights[0, 0].sum(), rtol=0.01)


def test_proposed_tokens_are_in_the_trace_too(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "Spell the word banana. Spell the word banana."}]
    with load(speculate=4, trace=tmp_path / "t") as llm:
        result = llm.chat(ask, temperature=0)
    decoded = (read_trace(tmp_path / "t").phases == 1).sum()
    assert decoded > result.timing.generated_tokens


def test_counters_of_a_run_are_the_simulators_on_its_trace(tmp_path: Path) -> None:
    with load() as llm:
        size = llm.file.tensors["blk.1.ffn_gate_exps.weight"].num_bytes
    with load(expert_ram=6 * size, trace=tmp_path / "t") as llm:
        for text in ("What is 12 + 7?", "Spell the word lantern.", "Say hello in Chinese."):
            llm.chat([{"role": "user", "content": text}], temperature=0, max_tokens=24)
        stats, plan = llm.expert_stats(), llm.expert_plan
    assert stats is not None and plan is not None
    counted = stats.counters
    got = simulate("lru", requests_of(read_trace(tmp_path / "t")), plan.num_slots)
    assert counted.hits == got.total(HITS) > 0
    assert counted.misses == got.total(MISSES) > 0
    assert counted.uploads == got.total(UPLOADS) > 0
    assert counted.evictions == got.total(EVICTIONS) > 0


def test_a_trace_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(trace=tmp_path / "none" / "t")
    assert app.main(["generate", "--trace", str(tmp_path), "-p", "a"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

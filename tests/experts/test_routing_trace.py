"""Routing traces: round trip, damage in one line, other programs' formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridmoe.experts.routing_trace as trace_module
from hybridmoe.cachebench.simulator import requests_of
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.trace_formats import from_sglang, from_vllm, write_csv
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import Trace, TraceWriter, read_trace, write_trace


def made(tokens: int = 90) -> Trace:
    locality = Locality(conversation_tokens=30, num_domains=2)
    return synthetic_trace(
        tokens, num_layers=3, num_experts=16, top_k=4, locality=locality, prefill_tokens=7
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "_FLUSH_BYTES", 500)  # several blocks
        write_trace(path, made())
    return path


def test_a_trace_comes_back_as_it_was(written: Path) -> None:
    trace, got = made(), read_trace(written)
    for name in ("ids", "weights", "steps", "conversations", "phases"):
        assert np.array_equal(getattr(got, name), getattr(trace, name)), name
    assert got.header == trace.header and "synthetic" in got.header["source"]


@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_refused_in_one_line_or_changes_nothing(
    written: Path, data: st.DataObject
) -> None:
    raw = bytearray(written.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = written.with_name("damaged")
    damaged.write_bytes(raw)
    try:
        read_trace(damaged)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_truncated_file_gives_its_whole_blocks_or_one_line(written: Path) -> None:
    raw, trace = written.read_bytes(), made()
    cut, lengths, refused = written.with_name("cut"), set(), 0
    for size in range(len(raw)):
        cut.write_bytes(raw[:size])
        try:
            got = read_trace(cut)
        except ConfigError as error:
            assert "truncated" in str(error) or "expected a routing trace" in str(error)
            refused += 1
            continue
        assert not got.is_complete and 0 < got.num_tokens <= trace.num_tokens
        for name in ("ids", "weights", "conversations", "phases"):
            expected = getattr(trace, name)[: got.num_tokens]
            assert np.array_equal(getattr(got, name), expected), name
        assert np.array_equal(got.steps, trace.steps[: len(got.steps)])
        assert [c["id"] for c in got.header["conversations"]] == sorted(set(got.conversations))
        lengths.add(got.num_tokens)
    assert len(lengths) > 3 and max(lengths) == trace.num_tokens
    assert refused < len(raw) / 3  # only before the first block is whole


def test_a_killed_run_leaves_its_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "_FLUSH_S", 0.0)
    header = {k: v for k, v in made().header.items() if k != "conversations"}
    writer = TraceWriter(tmp_path / "t", header)
    for _ in range(2):
        writer.add_step(np.zeros((1, 3, 4)), np.zeros((1, 3, 4)), [5], [1])
    got = read_trace(tmp_path / "t")
    assert got.num_tokens == 2 and not got.is_complete
    assert got.header["conversations"] == [{"id": 5}]
    writer.close()
    assert read_trace(tmp_path / "t").is_complete


def test_a_full_disk_is_reported_by_close(tmp_path: Path) -> None:
    header = {k: v for k, v in made().header.items() if k != "conversations"}
    writer = TraceWriter(Path("/dev/full"), header)
    writer.add_step(np.zeros((1, 3, 4)), np.zeros((1, 3, 4)), [0], [1])
    with pytest.raises(ConfigError, match="No space left"):
        writer.close()
    writer.close()


def test_csv_has_a_row_for_each_request(tmp_path: Path) -> None:
    requests = requests_of(made(), flat=True)
    write_csv(tmp_path / "t.csv", requests)
    rows = np.loadtxt(tmp_path / "t.csv", np.int64, delimiter=",", skiprows=1)
    assert np.array_equal(rows[:, 3], requests.keys())
    assert np.array_equal(rows[:, 1] * 16 + rows[:, 2], rows[:, 3])


def test_vllms_responses_become_a_trace() -> None:
    trace = made(60)
    responses = [trace.ids[:30], trace.ids[30:]]
    got = from_vllm(responses, [7, 7], 16)
    assert np.array_equal(got.ids, trace.ids) and np.array_equal(got.steps, trace.steps)
    with pytest.raises(ConfigError, match="40 prompt tokens of 30"):
        from_vllm(responses, [7, 40], 16)
    with pytest.raises(ConfigError, match="-1 to 3"):
        from_vllm(responses, [7, 7], 4)


def test_sglangs_records_become_a_trace(tmp_path: Path) -> None:
    trace = made(30)
    ends = np.cumsum(trace.steps)
    records = [
        {
            "topk_ids_of_layer": torch.from_numpy(trace.ids[e - n : e].astype(np.int32)).permute(
                1, 0, 2
            )
        }
        for n, e in zip(trace.steps, ends, strict=True)
    ]
    torch.save({"records": records, "last_physical_to_logical_map": None}, tmp_path / "r.pt")
    got = from_sglang(tmp_path / "r.pt", 16)
    assert np.array_equal(got.ids, trace.ids) and np.array_equal(got.steps, trace.steps)
    (tmp_path / "r.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="expected a per-token record"):
        from_sglang(tmp_path / "r.pt", 16)

"""Parts of the hybrid benchmark without a GPU: settings, table, and what a file keeps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from k2_header import write_k2

from bench import _hybrid_parts, bench_hybrid
from bench._harness import Row
from bench._hybrid_parts import default_slots, measure_decode, vram_bytes
from bench._hybrid_run import Decoded, plan_for
from bench._hybrid_table import PARTS, table_of
from bench._peer import PeerSpeed
from bench._timeline import Shares
from hybridmoe.planning.rates import GpuRates, rates_of

GEMV = {
    "copy": 3000.0,
    "link": 55.0,
    "products": {"Q8_0 2048x7168": 2300.0, "BF16 9x9": 2000.0},
    "few_tokens": {"4 tokens Q8_0 2048x7168": 1900.0, "16 tokens Q8_0 2048x7168": 1700.0},
    "slots": {"Q4_K, Q6_K": 2200.0},
}
PEER = [
    asdict(PeerSpeed(16, 2048, 512, prompt=1268.0, decode=47.9)),
    asdict(PeerSpeed(15, 512, 512, prompt=1491.0, decode=55.8)),
]
PROMPTS = [{"num_tokens": 512, "tokens_per_s": 3000.0, "cpu_tokens_per_s": 526.0, "first": 2000.0}]


def way(speed: float, num_slots: int | None) -> dict[str, Any]:
    return {
        "name": f"{num_slots} slots", "num_slots": num_slots,
        "tokens_per_s": speed, "p90_s": 0.02, "hit_rate": 0.5 if num_slots else None,
        "uploads": 0.25,
        "predicted": 1.2 * speed, "overlap": 0.96, "inside": 0.94,
    }  # fmt: skip


WAYS = [
    way(40.0, None) | {"name": "CPU only"},
    way(139.0, 0),
    way(130.0, 19),
    way(400.0, 96),
]


def rows_of(parts: dict[str, Any]) -> dict[str, Row]:
    return {row.name: row for row in table_of(parts)}


def test_each_row_has_the_bar_of_what_was_measured() -> None:
    rows = rows_of({"gemv": GEMV, "decode": WAYS, "prompts": PROMPTS, "peer": PEER})
    bars = {
        "one token Q8_0 2048x7168": (2250.0, True),
        "one token BF16 9x9": (2250.0, False),
        "one token, experts Q4_K, Q6_K": (2250.0, False),
        "4 tokens Q8_0 2048x7168": (1800.0, True),
        "16 tokens Q8_0 2048x7168": (1800.0, False),
        "decode, CPU only": (None, None),
        "decode, 0 slots": (2.5 * 55.8, False),  # 139.5
        "overlap": (0.95, True),
        "inside kernels": (0.95, False),
        "decode, 19 slots": (139.0, False),  # slower than without slots
        "decode, 96 slots": (139.0, True),
        "prediction, 96 slots": (0.85, False),  # off by 20 %
        "prompt of 512": (2982.0, True),
        "first prompt of 512": (2400.0, False),
    }
    for name, (bar, holds) in bars.items():
        assert rows[name].holds is holds, name
        assert rows[name].bar == (None if bar is None else pytest.approx(bar)), name
    assert rows["prompt of 512"].peer == 1491.0
    assert rows["decode, 19 slots"].peer == rows["peer, decode"].value == 55.8


def test_without_the_peer_its_bars_are_left_out() -> None:
    rows = rows_of({"decode": WAYS, "prompts": PROMPTS})
    for name in ("decode, 0 slots", "prompt of 512"):
        assert (rows[name].peer, rows[name].bar) == (None, None)
    assert rows["overlap"].holds
    assert not any("one token" in name or "peer" in name for name in rows)


@pytest.mark.parametrize("only", [(), ("peer", "gemv")])
def test_without_a_gpu_it_says_what_it_would_measure(
    only: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = [flag for name in only for flag in ("--only", name)]
    result = CliRunner().invoke(bench_hybrid.main, [*flags, "--peer", "true"])
    assert result.exit_code == 1
    head, *lines = result.output.splitlines()
    assert "no CUDA GPU" in head
    assert [line.split()[0] for line in lines] == list(only or PARTS)


def test_a_peer_is_named_where_it_is_to_be_measured() -> None:
    result = CliRunner().invoke(bench_hybrid.main, ["--only", "peer"])
    assert (result.exit_code, result.output) == (1, "Error: --only peer: expected --peer COMMAND\n")


def test_parts_of_the_same_run_come_together_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "r.json"
    about = {"gpu": "NVIDIA H100 80GB HBM3, 79.2 GiB", "torch": "2.11.0", "file": "one"}

    def measured(name: str, value: Any, about: dict[str, Any] = about) -> dict[str, Any]:
        bench_hybrid.measure((name,), {name: lambda: value}, about, str(path))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    measured("gemv", GEMV)
    measured("decode", WAYS)
    found = measured("peer", PEER)
    assert set(found["machine"]["parts"]) == {"gemv", "decode", "peer"}
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["decode, 0 slots"]["bar"] == pytest.approx(2.5 * 55.8)
    assert rows["link"]["value"] == 55.0
    assert set(measured("gemv", GEMV, about | {"file": "two"})["machine"]["parts"]) == {"gemv"}


def test_a_part_that_fails_leaves_the_parts_before_it(tmp_path: Path) -> None:
    path = tmp_path / "r.json"

    def fail() -> None:
        raise RuntimeError("CUDA")

    with pytest.raises(RuntimeError, match="CUDA"):
        bench_hybrid.measure(
            ("gemv", "decode"), {"gemv": lambda: GEMV, "decode": fail}, {"gpu": "g"}, str(path)
        )
    assert json.loads(path.read_text())["machine"]["parts"] == {"gemv": GEMV}


def test_results_are_named_after_the_card() -> None:
    known = {"date": "2026-11-27", "gpu": "NVIDIA H100 80GB HBM3, 79.2 GiB"}
    assert bench_hybrid.result_name(known) == "2026-11-27_hybrid_h100-80gb-hbm3.json"


@pytest.mark.parametrize("num_slots", [1, 96])
def test_a_budget_of_long_prompts_leaves_the_slots_asked_for(
    num_slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less VRAM a prompt's steps are shorter, too, and leave room for other slots."""
    path = write_k2(tmp_path / "k2.gguf")
    monkeypatch.setattr(_hybrid_parts, "_gpu_bytes", lambda: 80 << 30)
    plan = plan_for(path, 8256, vram_bytes(path, 8256, num_slots))
    assert plan.num_vram_slots == num_slots
    assert plan.max_step_tokens < plan_for(path, 8256, 80 << 30).max_step_tokens


def test_every_way_gets_the_slots_that_it_is_named_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_k2(tmp_path / "k2.gguf")
    card = SimpleNamespace(total_memory=48 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    gpu = GpuRates.assumed(768, 155, 31.5)
    rates = rates_of("amx", dram=250e9, peak_ops=60e12, gpu=gpu)
    opened_as: list[dict[str, Any]] = []

    @contextmanager
    def fake_opened(path: Path, context_tokens: int, **options: Any) -> Iterator[Any]:
        if options["device"] == "cuda":
            options["slots"] = plan_for(path, context_tokens, options["vram"]).num_vram_slots
        opened_as.append(options)
        prefill = SimpleNamespace(registered_bytes=0)
        yield SimpleNamespace(gpu_rates=[rates], experts=SimpleNamespace(prefill=prefill))

    def fake_decode(llm: Any, num_warm_up: int, num_timed: int) -> Decoded:
        num_slots = opened_as[-1].get("slots", 0)
        return Decoded([0.1] * num_timed, 0.25 if num_slots else None, num_slots)

    shares = Shares(overlap=0.93, gpu_idle=0.7, cpu_idle=0.1, outside=0.02)
    monkeypatch.setattr(_hybrid_parts, "opened", fake_opened)
    monkeypatch.setattr(_hybrid_parts, "decode", fake_decode)
    monkeypatch.setattr(_hybrid_parts, "profiled_decode", lambda llm, warm_up: shares)
    slots = default_slots(path, 64)
    ways = measure_decode(path, 64, slots)
    assert opened_as[0] == {"device": "cpu"} and ways[0]["name"] == "CPU only"
    profiled = opened_as[-2:]  # the second run begins with what the first one used
    assert [options["slots"] for options in profiled] == [slots[-2], slots[-2]]
    assert len({options["expert_profile"] for options in profiled}) == 1
    assert ways[-1]["name"] == f"{slots[-2]} slots, from a profile"
    for options, found in zip(opened_as[1:-2], ways[1:-1], strict=True):
        assert found["num_slots"] == options["slots"]
        assert found["name"].split()[0] == str(options["slots"])
    assert [found["num_slots"] for found in ways[1:-1]] == slots
    assert slots[0] == 0
    rows = rows_of({"decode": ways})
    assert rows["overlap"].value == 0.93 and rows["inside kernels"].holds
    assert rows["decode, CPU only"].value == pytest.approx(10)

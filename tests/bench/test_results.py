"""Bars of the benchmark of experts are those that were promised, and results are summed up."""

import json
from pathlib import Path

import pytest

from bench._expert_cases import FEW_TOKENS, SETS, TYPES, Case, promised_cases
from bench.summarize import RESULTS, TARGET, summary
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits, Rate


@pytest.mark.parametrize("active", SETS)
def test_each_promise_has_a_row(active: str) -> None:
    cases = promised_cases(active)
    assert len(cases) == len(set(cases))
    decode = {(case.type, case.tokens) for case in cases if not case.is_prefill}
    assert decode == {(type, tokens) for type in TYPES for tokens in (1, *FEW_TOKENS)}
    prefill = {case.isa for case in cases if case.is_prefill and case.tokens == 256}
    assert prefill == set(SETS)  # those that a machine lacks are listed, too


@pytest.mark.parametrize(
    ("best", "case", "share"),
    [
        ("avx512", Case("avx512", Type.Q4_K, False, 1), 0.85),
        ("avx512", Case("avx512", Type.IQ2_XS, False, 1), 0.6),
        ("avx512", Case("avx2", Type.IQ2_XS, False, 1), 0.4),
        ("avx2", Case("avx2", Type.IQ3_K, False, 1), 0.4),
        ("avx2", Case("avx2", Type.Q8_0, False, 1), 0.85),
        ("avx512", Case("avx2", Type.Q8_0, False, 1), None),
        ("avx512", Case("avx512", Type.IQ1_S, False, 8), 0.8),
        ("avx512", Case("avx_vnni", Type.Q6_K, True, 64), 0.6),
        ("amx", Case("amx", Type.Q6_K, True, 64), 0.45),
        ("amx", Case("amx", Type.IQ2_XS, True, 256), 0.6),
        ("avx512", Case("avx512", Type.IQ2_XS, True, 256), None),
        ("avx512", Case("avx512", Type.Q4_K, True, 16), None),
    ],
    ids=str,
)
def test_bars(best: str, case: Case, share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "supported", lambda: (best, "scalar"))
    assert case.bar(10.0, None) == (None if share is None else pytest.approx(10 * share))


def test_a_peer_raises_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "supported", lambda: ("avx2", "scalar"))
    assert Case("avx2", Type.Q4_K, True, 64).bar(10.0, 8.0) == pytest.approx(1.3 * 8)
    assert Case("avx2", Type.IQ1_S, False, 1).bar(10.0, 8.0) == 8.0


def test_tiles_are_held_against_the_peak_of_bfloat16() -> None:
    rate = Rate(1e12, 2e12)
    limits = Limits(rate, rate, rate, amx_int8=Rate(8e12, 16e12), amx_bf16=Rate(4e12, 8e12))
    assert Case("amx", Type.Q4_K, True, 64).limit(limits) == 8.0
    assert Case("avx512", Type.Q4_K, True, 64).limit(limits) == 2.0


def test_results_are_summed_up(tmp_path: Path) -> None:
    about = {"cpu": "a CPU", "threads": 2, "isa": "avx512", "date": "d", "commit": "c"}
    row = {"unit": "GB/s", "limit": 10.0, "peer": None, "bar": 6.0}
    rows = [
        row | {"name": "avx512 Q4_K decode, 1 token", "value": 7.0, "holds": True},
        row | {"name": "avx512 Q8_0 decode, 1 token", "value": 5.0, "holds": False},
        row | {"name": "amx Q8_0 prefill, 64 tokens an expert", "value": None, "holds": None},
    ]
    for name in ("a_expert_forward", "b_generate"):
        text = json.dumps({"machine": about, "rows": rows})
        (tmp_path / f"{name}.json").write_text(text)
    said = summary(tmp_path)
    assert "1 of 2 bars hold; 1 rows were not run" in said
    assert "| tokens | avx512 decode 1 | amx prefill 64 |" in said
    assert "| Q8_0 | **0.50** of 0.60 | not run |" in said
    assert "| avx512 Q8_0 decode, 1 token | **5 GB/s** | 10 |  | 6 |" in said


def test_the_page_is_that_of_the_results() -> None:
    assert TARGET.read_text() == summary(RESULTS), "run bench/summarize.py"

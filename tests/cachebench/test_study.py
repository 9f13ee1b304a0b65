"""Cache study: recordings equal the engine's routing, and figures equal the replays' counts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from k2_header import write_k2

from hybridmoe import load
from hybridmoe.cachebench.gates import HORIZONS
from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.cachebench.predictors import Recall, recalls
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.record import Recording, record
from hybridmoe.cachebench.simulator import HITS, MISSES, UPLOADS, requests_of, simulate
from hybridmoe.cachebench.study import Speeds, Study, by_category, split, study
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.tier_study import splits_of
from hybridmoe.cachebench.tiers import simulate_tiers
from hybridmoe.cachebench.workloads import CATEGORIES, workloads
from hybridmoe.cachebench.write import advice, recall_table, table, tier_table, write_study
from hybridmoe.cli import app
from hybridmoe.cli.bench_run import section_of
from hybridmoe.experts.routing_trace import PHASES, Trace, read_trace
from hybridmoe.planning.hit_curve import read_hit_curve

SOME = ("lru", "global-lru", "static", "ema")
DECODE = PHASES.index("decode")


@pytest.fixture(scope="module")
def recording() -> Recording:
    with load() as llm:
        return record(llm, workloads(2, seed=1), 12, seed=1)


@pytest.fixture(scope="module")
def found(recording: Recording) -> Study:
    return study(recording.trace, recording.predictions, Speeds(), SOME)


def test_a_recording_has_the_experts_of_the_engines_responses(recording: Recording) -> None:
    trace, first = recording.trace, workloads(2, seed=1)[0]
    with load() as llm:
        prompt = llm.encode_chat(first.messages)
        result = llm.chat(first.messages, temperature=0, max_tokens=12)
    mine = trace.conversations == 0
    assert (mine & (trace.phases != DECODE)).sum() == len(prompt)
    # The prompt's last step chooses the first token; the end of a response is no token.
    assert 0 <= len(result.token_ids) - (mine & (trace.phases == DECODE)).sum() <= 1


def test_every_choice_is_an_expert_and_no_token_chooses_one_twice(recording: Recording) -> None:
    ids = np.sort(recording.trace.ids, 2)
    assert ids.min() >= 0 and ids.max() < recording.trace.num_experts
    assert (np.diff(ids, axis=2) > 0).all()
    assert {c["category"] for c in recording.trace.header["conversations"]} == set(CATEGORIES)


def test_halves_have_all_tokens_and_share_no_conversation(recording: Recording) -> None:
    train, held = split(recording.trace)
    assert train.num_tokens + held.num_tokens == recording.trace.num_tokens
    assert not set(train.conversations) & set(held.conversations)
    assert int(held.steps.sum()) == held.num_tokens
    ordered = by_category(train)
    assert sorted(ordered.conversations) == sorted(train.conversations)


def test_rows_are_what_a_replay_counts(recording: Recording, found: Study) -> None:
    held = split(recording.trace)[1]
    is_decode = held.phases[np.cumsum(held.steps) - 1] == DECODE
    for row in found.rows:
        if row.policy not in SOME or row.protocol != "cold":
            continue
        counts = simulate(row.policy, requests_of(held), row.slots).by_step[is_decode]
        tokens = is_decode.sum()
        assert row.hits == pytest.approx(counts[:, HITS].sum() / tokens)
        assert row.uploads == pytest.approx(counts[:, UPLOADS].sum() / tokens)
        assert row.net == pytest.approx(row.hits - row.uploads)
        assert row.net_low <= row.net <= row.net_high
        assert row.hits + row.miss_ratio * 16 == pytest.approx(16)  # 4 layers of 4


def test_no_policy_hits_more_than_min_with_bypass_and_a_small_global_lru_hits_nothing(
    found: Study,
) -> None:
    best = {row.slots: row.hits for row in found.rows if row.policy == "belady-bypass"}
    for row in found.rows:
        if row.protocol == "cold" and row.policy in SOME:
            assert row.net <= found.upload_optimum[row.slots][0] + 1e-9
            assert row.hits <= best[row.slots] + 0.3  # the bound includes prompts
        if row.policy == "global-lru" and row.working_sets <= 0.5:
            assert row.hits < 0.1  # only in a response's first tokens, on the prompt's last experts


def test_splits_of_vram_and_ram_are_replayed_with_the_live_policies(
    recording: Recording, found: Study
) -> None:
    train, held = split(recording.trace)
    requests, run_in = requests_of(held), requests_of(by_category(train))
    is_decode = held.phases[np.cumsum(held.steps) - 1] == DECODE
    tokens, sizes = is_decode.sum(), held.header["expert_bytes"]
    seconds = {}
    for row in found.tiers:
        vram = make_policy("cost-aware", requests.shape(row.vram_slots))
        ram = RamPolicy(requests.shape(0), [row.ram_slots])
        for of in (run_in, requests):
            outcome = simulate_tiers(vram, ram, of, Speeds().rates, sizes)
        above, below = outcome.vram.by_step[is_decode], outcome.ram.by_step[is_decode]
        assert row.in_vram * 16 * tokens == pytest.approx(above[:, HITS].sum())
        assert row.on_disk * 16 * tokens == pytest.approx(below[:, MISSES].sum())
        assert row.in_vram + row.in_ram + row.on_disk == pytest.approx(1)
        from_disk = below[:, MISSES].sum() / tokens + row.uploads - row.promoted
        assert row.read_bytes == pytest.approx(from_disk * sizes[0])  # all of one size
        seconds[row.vram_slots, row.ram_slots] = row.token_s
        assert row.token_s == pytest.approx(outcome.seconds[is_decode].sum() / tokens)
        assert row.saved_s == pytest.approx(seconds[0, row.ram_slots] - row.token_s)
        assert row.saved_low_s <= row.saved_s <= row.saved_high_s
    assert len(seconds) == len(found.tiers) == 8


def test_splits_have_no_more_slots_than_experts() -> None:
    assert splits_of(100, [60], [50, 1000]) == [(0, 50), (60, 40), (0, 100)]
    assert splits_of(100, None, [30])[-1] == (20, 30)


def recall_of(found: Study, predictor: str, horizon: int | None, budget: int) -> list[Recall]:
    wanted = (predictor, horizon, budget)
    return [r for r in found.recalls if (r.predictor, r.horizon, r.num_predicted) == wanted]


@pytest.mark.parametrize("budget", [4, 8])
def test_recalls_are_counted_as_they_are_defined(
    recording: Recording, found: Study, budget: int
) -> None:
    trace = recording.trace
    decoded = np.flatnonzero(trace.phases == DECODE)
    held = [(i, t) for i, t in enumerate(decoded) if trace.conversations[t] % 2]
    train = [t for t in decoded if trace.conversations[t] % 2 == 0]

    def recent(t: int, layer: int) -> list[int]:
        latest: list[int] = []
        while len(latest) < budget and t and trace.conversations[t - 1] == trace.conversations[t]:
            t -= 1
            latest += [e for e in trace.ids[t, layer].tolist() if e not in latest]
        return latest[:budget]

    for layer in range(trace.num_layers):
        uses = np.bincount(trace.ids[train, layer].ravel(), minlength=trace.num_experts)
        hot = np.argsort(-uses, kind="stable")[:budget].tolist()
        predictions: dict[tuple[str, int | None], list[list[int]]] = {
            ("static", None): [hot for _ in held],
            ("previous token", None): [recent(t, layer) for _, t in held],
        }
        for row, horizon in enumerate(HORIZONS):
            if horizon <= layer + 1:  # one dense layer comes before the first with experts
                named = recording.predictions[:, row, layer, :budget].tolist()
                predictions["gate", horizon] = [named[i] for i, _ in held]
        for (predictor, horizon), named in predictions.items():
            shares = [
                len(set(trace.ids[t, layer].tolist()) & set(predicted)) / trace.top_k
                for (_, t), predicted in zip(held, named, strict=True)
            ]
            got = [r for r in recall_of(found, predictor, horizon, budget) if r.layer == layer]
            assert len(got) == 1 and got[0].recall == pytest.approx(np.mean(shares))
            assert got[0].low <= got[0].recall <= got[0].high


def test_a_fresh_gate_is_always_right_and_earlier_ones_less_and_less(found: Study) -> None:
    assert all(r.recall == 1.0 for r in found.recalls if r.horizon == 0)
    for budget in (4, 8):
        last = [
            next(r.recall for r in recall_of(found, "gate", h, budget) if r.layer == 3)
            for h in HORIZONS
        ]
        assert last == sorted(last, reverse=True) and last[1] < 1.0
        static = recall_of(found, "static", None, budget)[0]
        assert static.layer is None
        assert recall_of(found, "gate", 1, budget)[0].low > static.high
    for r in found.recalls:
        more = [o for o in recall_of(found, r.predictor, r.horizon, 8) if o.layer == r.layer]
        assert r.recall <= more[0].recall


def test_previous_tokens_are_those_of_the_same_conversation_in_a_mixed_batch() -> None:
    ids = np.array([[0, 1], [6, 7], [2, 1], [6, 5], [3, 4]], np.int16)[:, None]
    trace = Trace(
        {"num_layers": 1, "num_experts": 8, "top_k": 2},
        ids,
        np.ones(ids.shape, np.float16),
        np.array([2, 2, 1], np.int32),
        np.array([0, 1, 0, 1, 0], np.int32),
        np.full(5, DECODE, np.uint8),
    )
    is_held = np.ones(5, np.bool_)
    found = recalls(trace, is_held, None, np.zeros((1, 8), np.int64), 0)
    # Of ten choices two are known: 1 of the third token and 6 of the fourth.
    assert {(r.num_predicted, r.layer): r.recall for r in found} == {
        (2, None): 0.2, (2, 0): 0.2, (4, None): 0.2, (4, 0): 0.2,
    }  # fmt: skip


def test_everything_is_written(found: Study, tmp_path: Path) -> None:
    files = write_study(found, tmp_path)
    read = json.loads((tmp_path / "study.json").read_text())
    assert len(read["rows"]) == len(found.rows) == len(files[2].read_text().splitlines()) - 1
    assert "| lru |" in table(found) and "| 26 | 64 |" in tier_table(found)
    assert len(read["tiers"]) == len(found.tiers) == len(files[5].read_text().splitlines()) - 1
    assert len(read["recalls"]) == len(found.recalls) == len(files[3].read_text().splitlines()) - 1
    text = (tmp_path / "table.md").read_text()
    assert "| fresh gate (control) | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 1.00, 1" in text
    assert "| gate, 3 layers early | " in text and " | -, -, 0." in text


def test_the_plan_uses_the_curve_that_is_written(tmp_path: Path) -> None:
    locality = Locality(conversation_tokens=15, reuse=0.5)
    trace = synthetic_trace(60, locality=locality, prefill_tokens=5)  # of Kimi K2's shape
    found = study(trace, None, Speeds(), ["lru"])
    write_study(found, tmp_path)
    path = tmp_path / "hit_curve.json"
    curve = read_hit_curve(path)
    assert curve == found.hit_curve and curve.slots[-1] == 60 * 384
    train, held = split(trace)
    for slots in (480, 3840):
        policy = make_policy("lru", requests_of(held).shape(slots))
        simulate(policy, requests_of(by_category(train)))
        counts = simulate(policy, requests_of(held)).by_step
        decoded = counts[held.phases[np.cumsum(held.steps) - 1] == DECODE]
        assert curve(slots) == pytest.approx(decoded[:, HITS].sum() / len(decoded) / 480)
    said = json.loads(path.read_text())
    assert said["policy"] == "lru" and said["source"].startswith("synthetic")
    k2 = write_k2(tmp_path / "k2.gguf", first_layers=3)
    options = ["--dram-gbs", "200", "--tops", "10", "--disk-gbs", "7", "--ram", "128G"]
    arguments = ["plan", str(k2), *options, "--hit-curve", str(path), "--json"]
    planned = json.loads(CliRunner().invoke(app.cli, arguments).output)
    num_slots = planned["plan"]["tiers"]["RAM"]["num_experts"]
    assert 480 < num_slots < 23040
    assert planned["hits"]["ram"] == pytest.approx(curve(num_slots))


def test_plots_are_drawn(found: Study, tmp_path: Path) -> None:
    plots = pytest.importorskip("hybridmoe.cachebench.plots", reason="no matplotlib")
    assert all(path.stat().st_size > 1000 for path in plots.write_plots(found, tmp_path))


@pytest.mark.parametrize(
    ("saved_us", "words"),
    [
        ({"cost-aware": 3.0, "lru": 1.0}, "saves 3.0 of 10.0 us a token for experts; no other"),
        ({"cost-aware": 1.0, "lru": 3.0}, "saves 1.0 of 10.0 us a token for experts; lru would"),
        ({"cost-aware": -1.0, "lru": -3.0}, "saves no time at these rates"),
        ({"lru": 3.0}, ""),
    ],
)
def test_the_advice_says_what_the_engines_policy_saves(
    found: Study, saved_us: dict[str, float], words: str
) -> None:
    row = next(row for row in found.rows if row.protocol == "shift" and row.working_sets == 1)
    rows = [
        replace(row, policy=name, saved_s=saved * 1e-6, token_s=(10 - saved) * 1e-6)
        for name, saved in saved_us.items()
    ]
    said = advice(replace(found, rows=rows))
    assert words in said if words else said == ""


def test_tables_for_a_terminal_have_the_same_cells(found: Study) -> None:
    for text in (table(found), tier_table(found), recall_table(found)):
        section = section_of(text)
        assert section.title == text.splitlines()[0]
        assert len(section.rows) == len(text.splitlines()) - 4
        assert {len(row) for row in section.rows} == {len(section.header)}
        assert "|" not in "".join(section.rows[0])
    assert "offline" in section_of(table(found)).rows[-1][0]


@pytest.mark.slow  # compiles every policy
def test_the_command_reads_its_own_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    options = ["bench", "cache", "--conversations", "2", "--tokens", "2", "--out", out]
    assert app.main(options) == 0
    said, noted = capsys.readouterr()
    assert "recording 14 responses" in noted and "replaying " in noted
    assert "the engine's policy, saves" in said
    assert "per-token working set" in said and said.startswith("Source: greedy responses of ")
    trace = tmp_path / "out" / "routing.trace"
    assert read_trace(trace).header["sampler"] == "greedy"
    damaged = tmp_path / "damaged.trace"
    raw = trace.read_bytes()
    damaged.write_bytes(raw[: len(raw) // 2])
    assert app.main(["bench", "cache", str(damaged), "--out", out]) == 1
    assert "damaged.trace is truncated" in capsys.readouterr().err
    damaged.write_bytes(raw[:-40])  # without its end
    sizes = ["--vram", "200KiB", "--ram", "1MiB"]
    assert app.main(["bench", "cache", str(damaged), "--out", out, *sizes]) == 0
    cut = f"cut off after {read_trace(trace).num_tokens} tokens"
    assert f"damaged.trace: {cut}" in capsys.readouterr().err
    assert cut in (tmp_path / "out" / "table.md").read_text()
    one = read_trace(trace).header["expert_bytes"][0]
    rows = json.loads((tmp_path / "out" / "study.json").read_text())["tiers"]
    slots = [(row["vram_slots"], row["ram_slots"]) for row in rows]
    assert slots == [(0, (1 << 20) // one), ((200 << 10) // one, (1 << 20) // one)]
    assert slots[1][0] > 0
    assert app.main(["bench", "cache", str(damaged), "--ram", "12"]) == 2
    assert "--ram" in capsys.readouterr().err

"""Multi-token prediction in plans: loaded where it is asked for, or predicted to be faster."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from k2_config import K2

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import outline_of
from hybridmoe.placement.budgets import plan_within
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.draft_gain import draft_gain
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.rates import rates_of
from hybridmoe.planning.stage_cost import StagedCost

WITH_MTP = {**K2, "deepseek2.block_count": 62, "deepseek2.nextn_predict_layers": 1}
# Much of a token's reads are dense weights, of which a second token needs no more.
DENSE = {**WITH_MTP, "deepseek2.expert_used_count": 2}
ENOUGH = Budgets(ram_bytes=1 << 40)


def planned(
    speculate: str, metadata: Mapping[str, Any] = WITH_MTP, budgets: Budgets = ENOUGH
) -> Plan:
    outline = outline_of(metadata, "Q4_K_M")
    options = LoadOptions(speculate=speculate, context_tokens=4096, max_running=1)
    return plan_within(outline.config, outline.tensors, options, budgets)


def test_the_layer_takes_memory_only_where_it_is_loaded() -> None:
    off, on = planned("off"), planned("mtp:2")
    before, after = off.problem.sizes, on.problem.sizes
    c = after.config
    assert (before.config.runs_mtp, c.runs_mtp) == (False, True)
    assert (len(before.experts), len(after.experts)) == (60, 61)
    assert len(after.layers) == 62 and after.moe_layers == range(1, 62)
    assert on.kv.page_bytes * 61 == off.kv.page_bytes * 62
    layer = after.by_layer[-1]
    assert after.total_bytes - before.total_bytes == layer.dense_bytes + layer.all_expert_bytes
    assert layer.all_expert_bytes > 5e9 and not layer.head
    assert after.network.total_bytes == before.total_bytes
    assert after.head == before.head
    assert (off.max_step_tokens, on.max_step_tokens) == (513, 515)


def test_it_is_loaded_by_itself_where_that_is_predicted_to_pay() -> None:
    for metadata, is_loaded in ((WITH_MTP, False), (DENSE, True)):
        plan = planned("auto", metadata)
        assert plan.problem.sizes.config.runs_mtp == is_loaded
        (note,) = plan.notes
        assert note.startswith("multi-token prediction: ")
        assert ("is not loaded: predicted" in note) != is_loaded
    small = {
        **DENSE,
        "deepseek2.block_count": 24,
        "deepseek2.embedding_length": 1024,
        "deepseek2.attention.head_count": 4,
        "deepseek2.vocab_size": 2048,
    }
    (note,) = planned("auto", small).notes
    assert re.search(r"not loaded, since it would take \d+ % of a token's time", note)
    plan = planned("auto", DENSE, Budgets(ram_bytes=100 << 30))
    assert plan.needs_disk and not plan.problem.sizes.config.runs_mtp
    assert "its drafts would be read from disk" in plan.notes[0]
    assert planned("mtp", DENSE, Budgets(ram_bytes=100 << 30)).problem.sizes.config.runs_mtp


def test_what_is_not_used_is_said() -> None:
    for speculate in ("off", "4"):
        (note,) = planned(speculate).notes
        assert note == "multi-token prediction: blk.61 is not loaded (--speculate mtp loads it)"
    assert planned("auto", K2).notes == ()


def test_a_file_without_the_layer_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"^speculate=mtp:1: the file has no whole layer .*blk\.61\.nextn"
    ):
        planned("mtp:1", K2)
    options = LoadOptions(speculate="mtp")
    config = ModelConfig.from_metadata(WITH_MTP)
    for missing in ("blk.61.", "blk.61.nextn.enorm", "blk.61.ffn_up_exps"):
        whole = outline_of(WITH_MTP, "Q4_K_M").tensors
        tensors = [t for t in whole if not t.name.startswith(missing)]
        with pytest.raises(ConfigError, match=r"^speculate=mtp: the file has no whole layer"):
            plan_within(config, tensors, options, ENOUGH)
        assert plan_within(config, tensors, LoadOptions(), ENOUGH).notes == ()


def test_predictions_leave_the_layer_out_of_a_token() -> None:
    rates = rates_of("avx512", dram=80e9, peak_ops=2e12)
    off, on = (StagedCost(planned(s, DENSE), rates, ()) for s in ("off", "mtp"))
    assert on.decode(1000).seconds == pytest.approx(off.decode(1000).seconds, rel=0.01)
    assert on.prompt(1000).seconds == pytest.approx(off.prompt(1000).seconds, rel=0.01)


def test_the_gain_is_the_tokens_over_the_time() -> None:
    plan, rates = planned("mtp", DENSE), rates_of("avx512", dram=80e9, peak_ops=2e12)
    cost = StagedCost(plan, rates, ())
    found = draft_gain(plan, cost, rates, 1000)
    one, n = cost.decode(1000), found.num_drafts
    tokens = [1.8, 2.28, 2.52][n - 1]
    more = sum((1 - 2 / 384) ** i for i in range(1, 1 + n))  # distinct experts of further tokens
    verifying = one.total_s + n * one.seconds["attention"] + more * one.seconds["experts"]
    assert found.gain < tokens * one.total_s / verifying  # drafts take time, too
    assert found.gain > 0.9 * tokens * one.total_s / verifying

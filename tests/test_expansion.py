"""Expansion: sizes from which on it pays, and chunks that leave none of a prompt behind."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from k2_config import K2

from hybridmoe.config import Expansion, IndexerConfig, ModelConfig

CONFIG = ModelConfig.from_metadata(K2)


def of(isa: str = "avx2", kv_type: str = "f16", **changes: Any) -> Expansion:
    return Expansion.of(replace(CONFIG, **changes), isa, kv_type)


@pytest.mark.parametrize(
    ("sizes", "tokens"),
    [
        ((512, 128, 64, 128), 256),  # Kimi K2
        ((512, 64, 64, 64), 256),  # the embedded model
        ((512, 192, 64, 256), 512),  # GLM-4.7-Flash
        ((512, 128, 64, 136), 0),  # no whole vectors
        ((64, 64, 64, 64), 0),  # nothing to save
    ],
)
def test_a_prompt_is_as_long_as_it_must_be_to_pay(sizes: tuple[int, ...], tokens: int) -> None:
    names = ("kv_lora_rank", "nope_dim", "rope_dim", "v_dim")
    changes = dict(zip(names, sizes, strict=True))
    assert of(**changes).least_tokens == tokens
    assert of("amx", **changes).least_tokens == 0
    assert of("amx", "int8", **changes).least_tokens == tokens


def test_nothing_is_expanded_where_the_user_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMOE_EXPAND", "0")
    assert of() == Expansion() and of().end(10_000, 0) == 0


def test_an_end_is_before_the_last_token_and_before_sparse_attention() -> None:
    rule = of()
    assert [rule.end(n, 100) for n in (356, 357, 9000)] == [0, 356, 8999]
    indexer = IndexerConfig(1, 128, 2048, (True,) * CONFIG.num_layers, has_neighbour_pairs=True)
    assert [of(indexer=indexer).end(9000, n) for n in (0, 1792, 1793)] == [2048, 2048, 0]


@given(
    known=st.integers(0, 300),
    num_new=st.integers(1, 900),
    budgets=st.lists(st.integers(100, 400), min_size=1, max_size=20),
    shares=st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_chunks_expand_all_that_is_to_be_expanded(
    known: int, num_new: int, budgets: list[int], shares: list[int]
) -> None:
    """By any budget of least_tokens or more, and any share of it."""
    rule = Expansion(100, 700)
    num_prompt = known + num_new
    start, end, steps = known, rule.end(num_prompt, known), 0
    while start < num_prompt:
        most = min(budgets[steps % len(budgets)], num_prompt - start)
        share = min(shares[steps % len(shares)], most)
        num_tokens = rule.cut(start, end, share, most)
        assert 0 < num_tokens <= most
        chunk = rule.chunk(start, num_tokens, end)
        assert chunk.num_expanded == max(0, min(end, start + num_tokens) - start)
        start, steps = start + num_tokens, steps + 1
    assert start == num_prompt


@given(num_prompt=st.integers(1, 2000), step_tokens=st.integers(1, 700))
def test_a_prompt_alone_is_cut_into_steps(num_prompt: int, step_tokens: int) -> None:
    rule = Expansion(256)
    chunks = list(rule.chunks(num_prompt, lambda: step_tokens))
    ends = [c.start + c.num_tokens for c in chunks]
    assert [0, *ends] == [*(c.start for c in chunks), num_prompt]
    assert all(0 < c.num_tokens <= step_tokens for c in chunks)
    if step_tokens >= 256:
        assert sum(c.num_expanded for c in chunks) == rule.end(num_prompt, 0)
    assert all(c.num_expanded == 0 for c in Expansion().chunks(num_prompt, lambda: step_tokens))

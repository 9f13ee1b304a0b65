"""Shares of hosts in a model's experts: by rate, within RAM, at least one each."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.expert_shares import HostRate, held_by, split_by_weight, split_experts
from hybridmoe.planning.model_sizes import sizes_of

GIB = 1 << 30


def lengths(shares: tuple[range, ...]) -> list[int]:
    return [len(share) for share in shares]


def test_shares_follow_the_rates() -> None:
    hosts = [HostRate("a", 900 * GIB, 200.0), HostRate("b", 900 * GIB, 100.0)]
    assert lengths(split_experts(384, 500 * GIB, hosts)) == [256, 128]


def test_a_host_holds_no_more_than_its_ram_as_long_as_others_have_some() -> None:
    hosts = [HostRate("a", 100 * GIB, 900.0), HostRate("b", 300 * GIB, 80.0)]
    hosts.append(HostRate("c", 300 * GIB, 80.0))
    assert lengths(split_experts(400, 400 * GIB, hosts)) == [100, 150, 150]


def test_too_little_ram_is_shared_by_ram() -> None:
    hosts = [HostRate("a", 50 * GIB, 900.0), HostRate("b", 150 * GIB, 80.0)]
    assert lengths(split_experts(384, 500 * GIB, hosts)) == [96, 288]


@given(
    st.integers(1, 400),
    st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=8),
)
def test_shares_cover_all_experts_once(num_experts: int, weights: list[float]) -> None:
    if len(weights) > num_experts:
        with pytest.raises(ConfigError, match="hosts for"):
            split_by_weight(num_experts, weights)
        return
    shares = split_by_weight(num_experts, weights)
    assert [expert for share in shares for expert in share] == list(range(num_experts))
    assert all(shares)


def test_a_share_is_planned_as_a_model_of_fewer_experts(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.gguf", variant="v3")
    outline = read_outline(tmp_path / "x.gguf")
    whole = sizes_of(outline.tensors, outline.config)
    config, tensors = held_by(outline.config, outline.tensors, range(2, 5))
    part = sizes_of(tensors, config)
    assert part.num_experts * outline.config.num_experts == whole.num_experts * 3
    assert part.expert_bytes == whole.expert_bytes
    assert part.all_expert_bytes * outline.config.num_experts == whole.all_expert_bytes * 3
    assert part.dense_bytes == whole.dense_bytes

"""Rotary embedding: YaRN's frequencies against the published values, rotation against complex."""

import math
from dataclasses import replace

import pytest
import torch
from k2_config import K2

from hybridmoe.config import AttentionTemperature, ModelConfig, YarnConfig
from hybridmoe.kernels.ops import rotate_
from hybridmoe.model.rope import RotaryTable, inverse_frequencies


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    c = ModelConfig.from_metadata(K2)
    x = torch.randn(5, 3, c.rope_dim, generator=torch.Generator().manual_seed(1))
    got = rotate_(x.clone(), RotaryTable(c).cos_sin([(1000, 1005)]))
    angle = torch.arange(1000, 1005)[:, None] * inverse_frequencies(c.rope_dim, c.rope_base, c.yarn)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    assert torch.allclose(got.double(), torch.view_as_real(turned).flatten(-2), atol=1e-6)


def test_chunks_and_whole_rotate_alike() -> None:
    table = RotaryTable(ModelConfig.from_metadata(K2))
    x = torch.randn(2000, 1, 64, generator=torch.Generator().manual_seed(2))
    runs = [(i, min(2000, i + 333)) for i in range(0, 2000, 333)]
    chunks = [table.cos_sin([run]) for run in runs]
    whole = rotate_(x.clone(), table.cos_sin([(0, 2000)]))
    assert torch.equal(rotate_(x.clone(), torch.cat(chunks)), whole)
    assert torch.equal(rotate_(x.clone(), table.cos_sin(runs)), whole)
    assert table.cos_sin([]).shape == (0, 64)


def test_without_yarn_frequencies_are_a_geometric_series() -> None:
    got = inverse_frequencies(8, 10000.0, None)
    assert torch.allclose(got, torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64))


@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (1.0, 1.0)])
def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones(fast: float, slow: float) -> None:
    yarn = YarnConfig(32.0, 4096, fast, slow, 1.0)
    plain = inverse_frequencies(64, 50000.0, None)
    got = inverse_frequencies(64, 50000.0, yarn)
    rotations = 4096 * plain / (2 * math.pi)
    assert torch.equal(got[rotations > fast * 1.5], plain[rotations > fast * 1.5])
    slowest = rotations < slow / 1.5
    assert torch.allclose(got[slowest], plain[slowest] / 32.0, rtol=1e-12)


def test_betas_change_the_middle_pairs() -> None:
    k2 = inverse_frequencies(64, 50000.0, YarnConfig(32.0, 4096, 1.0, 1.0, 1.0))
    default = inverse_frequencies(64, 50000.0, YarnConfig(32.0, 4096, 32.0, 1.0, 1.0))
    assert (k2 / default).max() > 1.5


def test_rows_end_with_the_factor_of_the_query() -> None:
    k2 = ModelConfig.from_metadata(K2)
    table = RotaryTable(replace(k2, temperature=AttentionTemperature(0.5, 10)))
    runs = [(0, 1), (9, 11), (29, 31)]
    rows = table.cos_sin(runs)
    assert torch.equal(rows[:, :-1], RotaryTable(k2).cos_sin(runs))
    want = [1.0, 1.0, *(1 + 0.5 * math.log(n) for n in (2, 3, 4))]
    assert torch.equal(rows[:, -1], torch.tensor(want))


def test_the_table_is_no_longer_than_the_context() -> None:
    table = RotaryTable(replace(ModelConfig.from_metadata(K2), context_tokens=100))
    long = RotaryTable(ModelConfig.from_metadata(K2))
    assert torch.equal(table.cos_sin([(0, 100)]), long.cos_sin([(0, 100)]))
    assert table.num_positions == 100 and long.num_positions == 1024

"""Live policies by name, and no import of numba without a cache."""

import subprocess
import sys

import pytest

from hybridmoe.cachebench.policies import registry as study
from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy import CacheShape, make_policy
from hybridmoe.experts.policy.live import LIVE_POLICIES

_SHAPE = CacheShape(1, 2, 1, 1)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"cache policy 'best': expected one of lru, cost-aware$"):
        make_policy("best", _SHAPE)
    with pytest.raises(ConfigError, match=r"expected one of lru, cost-aware$"):
        make_policy("fifo", _SHAPE)  # only the study runs it
    with pytest.raises(
        ConfigError, match=r"expected one of lru, cost-aware, ema, quota-lru, .*least-stale$"
    ):
        study.make_policy("best", _SHAPE)


@pytest.mark.parametrize(
    "shape",
    [
        CacheShape(0, 2, 1, 1),
        CacheShape(1, 0, 1, 1),
        CacheShape(1, 2, -1, 1),
        CacheShape(1, 2, 1, 3),
    ],
)
def test_impossible_shapes_are_refused(shape: CacheShape) -> None:
    for make in (make_policy, study.make_policy):
        with pytest.raises(ConfigError, match=r"cache (num_|top_k)"):
            make("lru", shape)


def test_the_study_has_every_live_policy_under_the_same_name() -> None:
    assert LIVE_POLICIES.items() <= study.POLICIES.items()
    assert len(study.POLICIES) == 21


def test_a_model_without_a_cache_does_not_import_numba() -> None:
    code = """
import sys, hybridmoe
hybridmoe.load(context_tokens=64).close()
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)

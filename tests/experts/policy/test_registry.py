"""Live policies by name; numba is not needed but for VRAM slots and the study."""

import subprocess
import sys

import pytest

from hybridmoe.cachebench.policies import registry as study
from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy import CacheShape, make_policy
from hybridmoe.experts.policy.live import LIVE_POLICIES
from hybridmoe.packages import install_command

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


def test_models_on_a_cpu_run_without_numba() -> None:
    code = """
import sys
sys.modules["numba"] = None
import hybridmoe
for options in ({}, {"expert_ram": "8MiB"}):
    with hybridmoe.load(context_tokens=64, device="cpu", **options) as llm:
        llm.generate("Hello", max_tokens=1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_study_names_numba_where_it_is_missing() -> None:
    code = """
import sys
sys.modules["numba"] = None
from hybridmoe.cli.app import main
sys.exit(main(["bench", "cache"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"hybridmoe: error: numba is missing: {install_command('numba')}\n"

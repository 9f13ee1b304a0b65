"""Sampling parameters: ranges and types."""

from typing import Any

import pytest

from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ConfigError


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 1.01},
        {"min_p": -0.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 1e9},
        {"seed": -1},
        {"max_tokens": -1},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": 5},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": [1]},
        {"ignore_eos": 1},
        {"temperature_last": "yes"},
        {"typical_p": 1.5},
        {"top_n_sigma": -1.0},
        {"xtc_probability": 2},
        {"xtc_threshold": float("nan")},
        {"repeat_last_n": -2},
        {"dry_multiplier": -0.5},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"dry_penalty_last_n": 2.0},
        {"dry_sequence_breakers": [""]},
        {"dry_sequence_breakers": ["x"] * 33},
        {"dry_sequence_breakers": ["\u20ac" * 22]},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"stop_token_ids": 5},
        {"stop_token_ids": [1, -1]},
        {"stop_token_ids": [True]},
        {"stop_token_ids": list(range(1025))},
    ],
)
def test_unusable_values_are_refused_by_name(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(params))):
        SamplingParams(**params)


def test_lists_become_tuples() -> None:
    """Parameters are shared between copies of a request."""
    params = SamplingParams(stop=["a"], stop_token_ids=[1, 2], dry_sequence_breakers="x")  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a",), (1, 2))
    assert params.dry_sequence_breakers == ("x",)

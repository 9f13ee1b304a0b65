"""Sampling that a model's file recommends."""

from collections.abc import Mapping
from typing import Any

from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ConfigError, GGUFError

__all__ = ["sampling_defaults"]

# GGUF keys that carry a model's recommended sampling (llama.cpp, since late 2025).
_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
    "xtc_probability": "general.sampling.xtc_probability",
    "xtc_threshold": "general.sampling.xtc_threshold",
}


def sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A model's recommended sampling. Errors: GGUFError for a value outside its range."""
    found = {name: metadata[key] for name, key in _SAMPLING_KEYS.items() if key in metadata}
    for name, value in found.items():
        try:
            SamplingParams(**{name: value})
        except ConfigError as error:
            raise GGUFError(f"{_SAMPLING_KEYS[name]}: {error}") from None
    return found

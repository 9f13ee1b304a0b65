"""Sampling parameters of a request, and the checks of their ranges.

A value that switches its sampler off is the default, except for the temperature. The order in which
samplers apply: hybridmoe.engine.sampler.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from hybridmoe.errors import ConfigError, short

__all__ = ["SamplingParams"]

_MAX_BREAKERS, _MAX_BREAKER_BYTES = 32, 64
_MAX_STOP_IDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of a request. Raises ConfigError for a value out of range."""

    temperature: float = 0.6  # Kimi K2's recommendation
    temperature_last: bool = False  # after the filters, as llama.cpp; else before, as vLLM
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0  # 0 = off
    xtc_probability: float = 0.0  # of removing all but the last token above the threshold
    xtc_threshold: float = 0.1  # above 0.5 = off
    repetition_penalty: float = 1.0  # over the last tokens of prompt and output
    repeat_last_n: int = -1  # their number; -1 = all
    presence_penalty: float = 0.0  # over the output
    frequency_penalty: float = 0.0  # over the output, per occurrence
    dry_multiplier: float = 0.0  # of the penalty on repeated sequences; 0 = off
    dry_base: float = 1.75  # to the power of a repetition's length beyond the allowed one
    dry_allowed_length: int = 2  # tokens that may repeat without a penalty
    dry_penalty_last_n: int = -1  # tokens of prompt and output searched; -1 = all, 0 = off
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")  # no repetition spans them
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None = a new one each time
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # end the response as the end token does
    min_tokens: int = 0  # before the end token, and before those of stop_token_ids
    max_tokens: int | None = None  # None = up to the context's end; 0 = the prompt only
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 100.0)
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            _check_number(name, getattr(self, name), 0.0, 1.0)
        _check_number("top_n_sigma", self.top_n_sigma, 0.0, 100.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _check_number("dry_multiplier", self.dry_multiplier, 0.0, 100.0)
        _check_number("dry_base", self.dry_base, 1.0, 100.0)
        _check_count("dry_allowed_length", self.dry_allowed_length, 1)
        for name in ("repeat_last_n", "dry_penalty_last_n"):
            _check_count(name, getattr(self, name), -1)
        _check_count("top_k", self.top_k, 0)
        _check_count("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _check_count("max_tokens", self.max_tokens, 0)
            if self.min_tokens > self.max_tokens:
                raise ConfigError(
                    f"min_tokens={self.min_tokens}: expected at most max_tokens={self.max_tokens}"
                )
        if self.seed is not None:
            _check_count("seed", self.seed, 0)
        for name in ("ignore_eos", "temperature_last"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={short(getattr(self, name))}: expected True or False")
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        breakers = _strings("dry_sequence_breakers", self.dry_sequence_breakers)
        object.__setattr__(self, "dry_sequence_breakers", breakers)
        _check_breakers(breakers)
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        _check_bias(self.logit_bias)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all parameters, for callers that set them by name."""
        return tuple(f.name for f in fields(cls))


def _check_number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name}={short(value)}: expected a number from {low:g} to {high:g}")


def _check_count(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={short(value)}: expected a whole number, {low} or more")


def _strings(name: str, given: object) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) else given
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise ConfigError(f"{name}={short(given)}: expected a non-empty string or a list of them")
    return tuple(strings)


def _check_breakers(breakers: tuple[str, ...]) -> None:
    if len(breakers) > _MAX_BREAKERS:
        raise ConfigError(
            f"dry_sequence_breakers: {len(breakers)} strings; at most {_MAX_BREAKERS} are taken"
        )
    for breaker in breakers:
        if len(breaker.encode("utf-8", "replace")) > _MAX_BREAKER_BYTES:
            raise ConfigError(
                f"dry_sequence_breakers: {short(breaker)} is longer than {_MAX_BREAKER_BYTES} bytes"
            )


def _token_ids(given: object) -> tuple[int, ...]:
    if not isinstance(given, list | tuple) or not all(type(i) is int and i >= 0 for i in given):
        raise ConfigError(f"stop_token_ids={short(given)}: expected a list of token ids")
    if len(given) > _MAX_STOP_IDS:
        raise ConfigError(f"stop_token_ids: {len(given)} ids; at most {_MAX_STOP_IDS} are taken")
    return tuple(given)


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise ConfigError(f"logit_bias={short(bias)}: expected a mapping of token id to number")
    for token_id, value in bias.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise ConfigError(f"logit_bias: key {short(token_id)} is not a token id")
        _check_number(f"logit_bias[{token_id}]", value, -math.inf, 1e9)

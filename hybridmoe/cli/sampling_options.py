"""Sampling parameters on the command line and in the chat: options, and values of `/params`.

An option that is not given is None, or empty if repeatable: the defaults are the file's and the
library's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from hybridmoe.cli.options import SectionOption, apply_decorators
from hybridmoe.errors import ConfigError

__all__ = [
    "SAMPLING_NAMES",
    "check_sensible",
    "parse_sampling_value",
    "sampling_of",
    "sampling_options",
]

F = TypeVar("F", bound=Callable[..., Any])
_METAVARS: Mapping[type, str | None] = {float: "X", int: "N", str: "TEXT", bool: None}
_WORDS = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_NO_TEXTS = "none"  # an empty list: of breakers, as in llama.cpp


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One field of `SamplingParams`: its type, or that of its entries, and its help text."""

    kind: type
    help: str
    flag: str | None = None  # of a list, given entry by entry

    def read(self, text: str) -> Any:
        """Parse one value. Errors: ValueError, KeyError."""
        return _WORDS[text.lower()] if self.kind is bool else self.kind(text)

    @property
    def words(self) -> str:
        return {float: "a number", int: "a whole number", bool: "on or off", str: "a text"}[
            self.kind
        ]


_SAMPLING: Mapping[str, _Parameter] = {
    "temperature": _Parameter(float, "Sampling temperature; 0 is greedy"),
    "temperature_last": _Parameter(
        bool, "Apply the temperature after the filters, as llama.cpp does"
    ),
    "top_k": _Parameter(int, "Sample from the N most likely tokens; 0 = all"),
    "top_p": _Parameter(float, "Sample from the most likely tokens of total probability X"),
    "min_p": _Parameter(float, "Drop tokens below X times the highest probability"),
    "typical_p": _Parameter(
        float, "Sample from the most typical tokens of total probability X; 1 = off"
    ),
    "top_n_sigma": _Parameter(
        float, "Drop logits more than X standard deviations below the highest; 0 = off"
    ),
    "xtc_probability": _Parameter(float, "Probability of removing the top choices (XTC); 0 = off"),
    "xtc_threshold": _Parameter(
        float, "Probability of a top choice; the least likely of them stays"
    ),
    "repetition_penalty": _Parameter(float, "Penalty on tokens of prompt and response; 1 = off"),
    "repeat_last_n": _Parameter(int, "Last tokens that the repetition penalty counts; -1 = all"),
    "presence_penalty": _Parameter(float, "Penalty on tokens that the response contains; 0 = off"),
    "frequency_penalty": _Parameter(float, "Penalty for each occurrence in the response; 0 = off"),
    "dry_multiplier": _Parameter(
        float, "Penalty on continuing a repeated sequence (DRY), e.g. 0.8; 0 = off"
    ),
    "dry_base": _Parameter(float, "Growth of the DRY penalty with each repeated token"),
    "dry_allowed_length": _Parameter(int, "Tokens that may repeat without a DRY penalty"),
    "dry_penalty_last_n": _Parameter(int, "Last tokens searched for repetitions; -1 = all"),
    "dry_sequence_breakers": _Parameter(
        str, "End repetitions at this text; repeatable; none = nowhere", "--dry-sequence-breaker"
    ),
    "seed": _Parameter(int, "Random seed; the same seed gives the same response"),
    "min_tokens": _Parameter(int, "Minimum tokens of a response"),
    "max_tokens": _Parameter(int, "Maximum tokens of a response"),
    "stop": _Parameter(str, "End before this text; repeatable", "--stop"),
    "stop_token_ids": _Parameter(
        int, "End at this token, as at the end token; repeatable", "--stop-token-id"
    ),
    "ignore_eos": _Parameter(bool, "Continue after the end token"),
}
# Ranges that make sense, and what is beyond them; `SamplingParams` allows what it can compute.
_SENSIBLE: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, 5.0, "higher, every token is about as likely as any other"),
    "repetition_penalty": (0.5, 2.0, "1 = off, 1.05 to 1.3 are usual"),
    "presence_penalty": (-2.0, 2.0, "0 = off, as in OpenAI's API"),
    "frequency_penalty": (-2.0, 2.0, "0 = off, as in OpenAI's API"),
    "top_n_sigma": (0.0, 10.0, "0 = off, 1 is usual"),
    "dry_multiplier": (0.0, 5.0, "0 = off, 0.8 is usual"),
    "dry_base": (1.0, 4.0, "1.75 is usual"),
}
_SHORT = {"temperature": ("--temp",), "max_tokens": ("-n",)}  # as in llama.cpp
SAMPLING_NAMES = tuple(_SAMPLING)  # as in `SamplingParams`


def sampling_options(function: F) -> F:
    """Add the options of sampling to a command."""
    return apply_decorators(function, *(_option(*item) for item in _SAMPLING.items()))


def _option(name: str, parameter: _Parameter) -> Any:
    is_flag = parameter.kind is bool
    return click.option(
        *_SHORT.get(name, ()),
        parameter.flag or f"--{name.replace('_', '-')}",
        name,
        cls=SectionOption,
        section="Sampling options [default: the model's]",
        help=parameter.help,
        metavar=_METAVARS[parameter.kind],
        multiple=parameter.flag is not None,
        **({"is_flag": True, "default": None} if is_flag else {"type": parameter.kind}),
    )


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the sampling parameters that a command was given."""
    given: dict[str, Any] = {}
    for name, parameter in _SAMPLING.items():
        value = options.get(name)
        if parameter.flag is None:
            if value is not None:
                given[name] = value
        elif value:
            given[name] = _list(name, list(value))
    return given


def parse_sampling_value(name: str, text: str) -> Any:
    """Parse the value of a parameter; that of a list is one entry, or a list in JSON.

    Errors: ConfigError, one line.
    """
    parameter = _SAMPLING[name]
    if parameter.flag is not None and text.startswith("["):
        try:
            return json.loads(text)  # `SamplingParams` checks the entries
        except ValueError:
            raise ConfigError(f"{name}={text!r:.40}: expected an entry, or a JSON list") from None
    try:
        value = parameter.read(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={text!r:.40}: expected {parameter.words}") from None
    return value if parameter.flag is None else _list(name, [value])


def check_sensible(params: Mapping[str, Any]) -> None:
    """Refuse values far outside the useful range. Errors: ConfigError with the reason."""
    for name, (low, high, reason) in _SENSIBLE.items():
        value = params.get(name)
        if isinstance(value, int | float) and not low <= value <= high:
            raise ConfigError(f"{name}={value:g}: expected {low:g} to {high:g} ({reason})")


def _list(name: str, values: list[Any]) -> list[Any]:
    return [] if name == "dry_sequence_breakers" and values == [_NO_TEXTS] else values

"""Sampling parameters of requests, under the names of every dialect."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.schemas.common import (
    MAX_INT,
    Count0,
    JsonObject,
    LastTokens,
    Penalty,
    Request,
    Share,
    StopField,
    Temperature,
    TokenLimit,
    Whole,
    stop_list,
)

__all__ = ["LogitBias", "SamplingFields", "StopTokenIds"]

_MAX_BIASES = 1024
_MAX_STOP_IDS = 256
_MAX_BREAKERS = 64

# llama.cpp's samplers in the order in which they run here, and the values that switch them off.
_SAMPLERS: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": 0.0},
    "top_k": {"top_k": 0},
    "typical_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
}
_OTHER_NAMES = {"typ_p": "typical_p", "temp": "temperature"}

# Fields of ollama's `options` that say where and how a model runs.
_MACHINE_OPTIONS = {
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap",
    "use_mlock", "numa", "low_vram", "vocab_only", "f16_kv",
}  # fmt: skip


def _bias_pairs(bias: object) -> object:
    """Convert llama.cpp's pairs to a mapping, and refuse a long one first.

    Pydantic checks the length of a mapping after all its entries.
    """
    if isinstance(bias, dict | list) and len(bias) > _MAX_BIASES:
        raise ValueError(f"{len(bias)} entries; at most {_MAX_BIASES} are taken")
    if not isinstance(bias, list):
        return bias
    out: dict[str, Any] = {}
    for pair in bias:
        if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], bool | list | dict):
            raise ValueError("expected a mapping of token id to number, or a list of such pairs")
        out[str(pair[0])] = -100.0 if pair[1] is False else pair[1]
    return out


Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[str, Bias],
    BeforeValidator(_bias_pairs),
    Field(json_schema_extra={"maxProperties": _MAX_BIASES}),
]
TokenId = Annotated[Whole, Field(ge=0, le=MAX_INT)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=_MAX_STOP_IDS, fail_fast=True)]
_Breaker = Annotated[str, Field(max_length=64)]
_Names = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64, fail_fast=True)]


class SamplingFields(Request):
    """Sampling parameters. Defaults come from the model's file."""

    temperature: Temperature | None = Field(default=None, description="0: greedy decoding.")
    temperature_last: bool | None = Field(
        default=None, description="Apply the temperature after the filters, as llama.cpp does."
    )
    top_p: Share | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=MAX_INT)] | None = Field(
        default=None, description="0 and -1: all tokens."
    )
    min_p: Share | None = None
    typical_p: Share | None = Field(default=None, description="Locally typical sampling; 1: off.")
    top_n_sigma: Annotated[float, Field(ge=-1.0, le=100.0)] | None = Field(
        default=None, description="0 and -1: off."
    )
    xtc_probability: Share | None = Field(
        default=None, description="Of leaving out the likeliest tokens; 0: off."
    )
    xtc_threshold: Share | None = Field(
        default=None, description="Tokens at least as likely may be left out, but for the last one."
    )
    dry_multiplier: Annotated[float, Field(ge=0.0, le=100.0)] | None = Field(
        default=None, description="Penalty on repeated sequences; 0: off."
    )
    dry_base: Annotated[float, Field(ge=1.0, le=100.0)] | None = None
    dry_allowed_length: Count0 | None = None
    dry_penalty_last_n: LastTokens | None = Field(default=None, description="-1: all tokens.")
    dry_sequence_breakers: (
        Annotated[list[_Breaker], Field(max_length=_MAX_BREAKERS, fail_fast=True)] | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = Field(
        default=None, description="Same as `repetition_penalty`."
    )
    repeat_last_n: LastTokens | None = Field(
        default=None, description="Tokens that `repetition_penalty` counts; -1: all."
    )
    logit_bias: LogitBias | None = Field(
        default=None,
        description="Bias by token id, as a mapping or pairs; -100 or false forbids the token.",
    )
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**64 - 1)] | None = Field(
        default=None, description="-1: a new one each time."
    )
    stop: StopField | None = Field(
        default=None, description="Up to 16 stop strings; they are not part of the text."
    )
    stop_token_ids: StopTokenIds | None = Field(
        default=None, description="Tokens that end the response as the end token does."
    )
    min_tokens: Count0 | None = Field(
        default=None, description="Tokens before the response may end."
    )
    ignore_eos: bool | None = Field(default=None, description="Continue after the end token.")
    n_predict: TokenLimit | None = Field(default=None, description="llama.cpp's `max_tokens`.")
    samplers: _Names | None = Field(
        default=None,
        description="llama.cpp's list: samplers that it lacks are off, and `temperature` stands"
        " before or after all others. Their order is fixed.",
    )

    options: JsonObject | None = Field(
        default=None, description="ollama's sampling parameters; those beside it take precedence."
    )

    @model_validator(mode="before")
    @classmethod
    def _lift_options(cls, given: Any) -> Any:
        """Read ollama's `options` as fields; those beside it take precedence."""
        options = given.get("options") if isinstance(given, dict) else None
        if not isinstance(options, dict):
            return given
        names = {"num_predict": "n_predict"}
        lifted = {names.get(k, k): v for k, v in options.items() if k not in _MACHINE_OPTIONS}
        absent = [name for name in lifted if name not in SamplingFields.model_fields]
        if absent:
            raise ValueError(f"options.{absent[0]:.40}: no such sampling parameter")
        return {**lifted, **given}

    def sampling(self) -> dict[str, Any]:
        """Convert the given fields to those of `SamplingParams`."""
        names = (
            "temperature", "temperature_last", "top_p", "min_p", "typical_p",
            "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base",
            "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
            "presence_penalty", "frequency_penalty", "repeat_last_n", "stop_token_ids",
            "min_tokens", "ignore_eos",
        )  # fmt: skip
        out = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.top_k is not None:
            out["top_k"] = max(0, self.top_k)
        if self.top_n_sigma is not None:
            out["top_n_sigma"] = max(0.0, self.top_n_sigma)
        penalty = self._repetition_penalty()
        if penalty is not None:
            out["repetition_penalty"] = penalty
        if self.logit_bias:
            out["logit_bias"] = _bias_by_id(self.logit_bias)
        if self.seed is not None and self.seed != -1:
            out["seed"] = self.seed % 2**64
        if self.stop:
            out["stop"] = stop_list(self.stop)
        if self.samplers:
            out |= _sampler_changes(self.samplers)
        return out

    def _repetition_penalty(self) -> float | None:
        one, other = self.repetition_penalty, self.repeat_penalty
        if one is not None and other is not None and one != other:
            raise ApiError(
                400,
                f"repeat_penalty is {other:g}, repetition_penalty {one:g}: they are the same"
                " parameter; give one",
                param="repeat_penalty",
            )
        return one if one is not None else other


def _sampler_changes(given: list[str]) -> dict[str, Any]:
    """Convert llama.cpp's list of samplers to parameters. Raises ApiError for another order."""
    samplers = [_OTHER_NAMES.get(name, name) for name in given]
    order = [*_SAMPLERS]
    places = [order.index(name) for name in samplers if name in _SAMPLERS]
    unknown = next((n for n in samplers if n not in _SAMPLERS and n != "temperature"), None)
    if unknown is not None:
        raise _samplers_error(f"{unknown!r:.40} is not supported")
    if places != sorted(set(places)) or samplers.count("temperature") > 1:
        raise _samplers_error("this order is not supported")
    out: dict[str, Any] = {}
    for name, off in _SAMPLERS.items():
        if name not in samplers:
            out |= off
    if "temperature" not in samplers:
        return {**out, "temperature": 1.0}
    num_before = samplers.index("temperature") - ("penalties" in samplers) - ("dry" in samplers)
    num_filters = sum(name not in ("penalties", "dry", "temperature") for name in samplers)
    if num_before <= 0:
        return {**out, "temperature_last": False}
    if num_before < num_filters:
        raise _samplers_error("temperature stands between others")
    return {**out, "temperature_last": True}


def _samplers_error(what: str) -> ApiError:
    order = ", ".join(_SAMPLERS)
    return ApiError(
        400,
        f"samplers: {what}; expected some of {order} in this order, with temperature before"
        " top_n_sigma or last",
        param="samplers",
        code="unsupported_value",
    )


def _bias_by_id(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise ApiError(400, f"logit_bias: {key!r:.40} is not a token id", param="logit_bias")
    # OpenAI's -100 forbids a token, which adding it to the logit would not quite.
    return {int(key): float("-inf") if value == -100 else value for key, value in bias.items()}

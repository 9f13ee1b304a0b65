"""Inference engine: continuous batching, KV cache, sampling. Token ids only; no text."""

from hybridmoe.engine.engine import Engine, RequestHandle
from hybridmoe.engine.request import (
    Event,
    Finished,
    PromptLogprobs,
    PromptProgress,
    Request,
    StopToken,
    TokenEvent,
    Usage,
)
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.stats import EngineStats

__all__ = [
    "Engine",
    "EngineStats",
    "Event",
    "Finished",
    "PromptLogprobs",
    "PromptProgress",
    "Request",
    "RequestHandle",
    "SamplingParams",
    "StopToken",
    "TokenEvent",
    "Usage",
]

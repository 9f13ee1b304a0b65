"""Sequences in time: batching, cache, sampling. Token ids only; no text here."""

from hybridmoe.engine.engine import Engine, EngineStats, Ticket
from hybridmoe.engine.request import Event, Finished, PromptProgress, Request, TokenEvent, Usage
from hybridmoe.engine.sampler import SamplingParams

__all__ = [
    "Engine",
    "EngineStats",
    "Event",
    "Finished",
    "PromptProgress",
    "Request",
    "SamplingParams",
    "Ticket",
    "TokenEvent",
    "Usage",
]

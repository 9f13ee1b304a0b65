"""Sequences in time: cache, sampling, generation. Token ids only; no text here."""

from hybridmoe.engine.generator import Generation, Generator
from hybridmoe.engine.sampler import SamplingParams

__all__ = ["Generation", "Generator", "SamplingParams"]

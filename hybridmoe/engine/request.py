"""Requests and events: input and output of the engine, in token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.dry import SequenceBreakers
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ConfigError

__all__ = [
    "MAX_TOP_LOGPROBS",
    "Event",
    "Finished",
    "Listener",
    "PromptLogprobs",
    "PromptProgress",
    "Request",
    "StopToken",
    "TokenEvent",
    "TokenExperts",
    "Usage",
]

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and its sampling parameters. Raises ConfigError for a value out of range."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    constraint: Constraint | None = None  # has state: for this request alone
    top_logprobs: int | None = None  # None = no log probabilities, not even the token's own
    prompt_logprobs: int | None = None  # alternatives to each of its tokens; None = do not score
    expert_trace: bool = False
    dry_breakers: SequenceBreakers = field(default_factory=dict)  # of `dry_sequence_breakers`

    def __post_init__(self) -> None:
        for name in ("top_logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not (type(count) is int and 0 <= count <= MAX_TOP_LOGPROBS):
                raise ConfigError(
                    f"{name}={count!r}: expected a whole number, 0 to {MAX_TOP_LOGPROBS}"
                )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of a request so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    disk_tokens: int = 0  # of the cached ones, read from disk
    generated_tokens: int = 0  # without the end token
    queue_s: float = 0.0  # submission to first step
    prompt_s: float = 0.0  # first step to first logits
    decode_s: float = 0.0  # first logits to last token
    draft_tokens: int = 0  # proposed by the engine's drafter
    accepted_tokens: int = 0  # of these, drawn by the model itself


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Prefill progress: sent before each chunk of the prompt, at its end, and within long ones."""

    done_tokens: int  # cached ones included; within a chunk, its share of layers counts
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Log probabilities of some of the prompt's tokens, in their order; the first one has none."""

    start: int  # position of the first one here
    logprobs: NDArray[np.float32]  # (T,), of the raw logits
    ranks: NDArray[np.int32]  # (T,), 1 = the likeliest token of the vocabulary
    top_ids: NDArray[np.int32]  # (T, prompt_logprobs), the likeliest first
    top_logprobs: NDArray[np.float32]

    @property
    def end(self) -> int:
        """Position after the last token here."""
        return self.start + len(self.logprobs)

    def until(self, end: int, num_top: int) -> "PromptLogprobs":
        """Those of positions before `end`, with `num_top` alternatives each."""
        rows = slice(end - self.start)
        return PromptLogprobs(
            self.start,
            self.logprobs[rows],
            self.ranks[rows],
            self.top_ids[rows, :num_top],
            self.top_logprobs[rows, :num_top],
        )

    def since(self, start: int) -> "PromptLogprobs":
        """Those of positions from `start` on."""
        rows = slice(start - self.start, None)
        return PromptLogprobs(
            start, self.logprobs[rows], self.ranks[rows], self.top_ids[rows],
            self.top_logprobs[rows],
        )  # fmt: skip

    @classmethod
    def join(cls, parts: Sequence["PromptLogprobs"]) -> "PromptLogprobs":
        """Join those of consecutive positions."""
        return cls(
            parts[0].start,
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.top_ids for part in parts]),
            np.concatenate([part.top_logprobs for part in parts]),
        )


class TokenExperts(NamedTuple):
    """Experts that a token's logits were routed to, and what served them."""

    ids: NDArray[np.int16]  # (MoE layers, top_k)
    tiers: NDArray[np.uint8]  # (MoE layers, top_k), indices into `experts.stats.TIERS`


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. End tokens are not reported."""

    token_id: int
    usage: Usage  # up to this token
    logprob: float | None = None  # of the raw logits, before any sampling parameter
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first
    experts: TokenExperts | None = None


@dataclass(frozen=True, slots=True)
class StopToken:
    """Token that ended a response, and is no part of it."""

    token_id: int
    logprob: float | None = None  # as in TokenEvent
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of every request."""

    reason: Literal["stop", "length", "cancelled", "error"]
    usage: Usage
    error: str | None = None  # one line
    is_refusal: bool = False  # the request is at fault, not the engine
    stop_token: StopToken | None = None  # an end token, or one of `stop_token_ids`


Event = PromptProgress | PromptLogprobs | TokenEvent | Finished
Listener = Callable[[Event], None]

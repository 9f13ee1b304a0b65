"""What goes into the engine and what comes out: requests and events, in token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.sampler import SamplingParams
from hybridmoe.errors import ConfigError

__all__ = [
    "MAX_TOP_LOGPROBS",
    "Event",
    "Finished",
    "Listener",
    "PromptProgress",
    "Request",
    "TokenEvent",
    "Usage",
]

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to continue. Raises ConfigError for a value outside its range."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    constraint: Constraint | None = None  # for this request alone: it has a state
    top_logprobs: int | None = None  # None = no log probabilities; else of the chosen and so many
    expert_trace: bool = False

    def __post_init__(self) -> None:
        count = self.top_logprobs
        if count is not None and not (type(count) is int and 0 <= count <= MAX_TOP_LOGPROBS):
            raise ConfigError(
                f"top_logprobs={count!r}: expected a whole number, 0 to {MAX_TOP_LOGPROBS}"
            )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request has cost so far. Times in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, not computed for this request
    generated_tokens: int = 0  # without the end token
    queue_s: float = 0.0  # until its first step began
    prompt_s: float = 0.0  # from there to the first logits
    decode_s: float = 0.0  # from the first generated token to the last
    proposed_tokens: int = 0  # by prompt lookup
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Sent before each piece of the prompt, and at its end."""

    done_tokens: int  # with the cached ones
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token; end tokens are not reported."""

    token_id: int
    usage: Usage  # up to this token
    logprob: float | None = None  # of the model's own distribution, before any parameter
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first
    experts: NDArray[np.int16] | None = None  # (MoE layers, top_k), of its logits


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request."""

    reason: Literal["stop", "length", "cancelled", "error"]
    usage: Usage
    error: str | None = None  # one line
    is_refusal: bool = False  # what was asked for cannot be; else the engine failed


Event = PromptProgress | TokenEvent | Finished
Listener = Callable[[Event], None]

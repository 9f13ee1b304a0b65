"""One job under way: the engine's events, from its thread, as updates in the event loop.

A run has one choice or several, each a sequence of the engine. What a client sees of a token is
decided here, whichever API it speaks: parts of the answer, log-probabilities of its text,
experts, and how it ended.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridmoe.engine.engine import Engine, Ticket
from hybridmoe.engine.request import (
    Finished,
    PromptProgress,
    Request,
    TokenEvent,
    Usage,
)
from hybridmoe.errors import DeviceError
from hybridmoe.serve.channel import Channel
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.job import Job
from hybridmoe.serve.metrics import Metrics
from hybridmoe.text.response_parser import CallEnd, Part, ResponseParser, TextPart
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["Delta", "Ended", "Progress", "Reason", "Run", "TokenLogprob", "Update"]

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text, and the likeliest ones in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """So much of a choice's prompt is read."""

    choice: int
    done_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class Delta:
    """What one or several tokens added to a choice."""

    choice: int
    parts: list[Part]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    experts: list[list[list[int]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is whole."""

    choice: int
    reason: Reason
    stop_string: str | None


Update = Progress | Delta | Ended


@dataclass(slots=True)
class _Choice:
    parts: ResponseParser
    ticket: Ticket | None = None
    num_tokens: int = 0
    num_thoughts: int = 0  # tokens of reasoning
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of text that is held back
    reason: Reason | None = None  # decided here, before the engine said so
    last_token_s: float | None = None
    usage: Usage | None = None


class Run:
    """Starts when made, in a running event loop; read `updates` once, and call `cancel` after."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, job: Job, metrics: Metrics) -> None:
        """Errors, with nothing left running: those of `Engine.submit`."""
        self.job = job
        self._engine = engine
        self.created = int(time.time())
        self._metrics = metrics
        self._channel = Channel()
        self._started_s = time.perf_counter()
        self._num_left = len(job.constraints)
        self._choices = [
            _Choice(
                ResponseParser(
                    tokenizer,
                    stop=job.params.stop,
                    may_call=job.may_call,
                    tools=job.tools,
                    may_think=job.may_think,
                    is_thinking=job.is_thinking,
                )
            )
            for _ in job.constraints
        ]
        try:
            for i, choice in enumerate(self._choices):
                choice.ticket = engine.submit(self._request(i), self._channel.listener(i))
        except BaseException:
            self.cancel()
            raise

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def is_done(self) -> bool:
        """Whether every choice has ended."""
        return self._num_left == 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; each prompt counts once, with any number of choices."""
        return sum(len(prompt) for prompt in self.job.prompts)

    @property
    def completion_tokens(self) -> int:
        """Of all choices, so far."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def reasoning_tokens(self) -> int:
        """Those of them that were thoughts."""
        return sum(choice.num_thoughts for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache by the first choice of each prompt."""
        firsts = self._choices[:: self.job.choices_per_prompt]
        return sum(choice.usage.cached_tokens for choice in firsts if choice.usage)

    def timings(self) -> dict[str, Any]:
        """Of the first choice, in llama.cpp's names; known once it has ended."""
        usage = self._choices[0].usage
        if usage is None:
            return {}
        num_read = usage.prompt_tokens - usage.cached_tokens
        num_steps = usage.generated_tokens - 1
        return {
            "queue_ms": round(usage.queue_s * 1e3, 3),
            "cache_n": usage.cached_tokens,
            "prompt_n": num_read,
            "prompt_ms": round(usage.prompt_s * 1e3, 3),
            "prompt_per_second": _rate(num_read, usage.prompt_s),
            "predicted_n": usage.generated_tokens,
            "predicted_ms": round(usage.decode_s * 1e3, 3),
            "predicted_per_second": _rate(num_steps, usage.decode_s),
        }

    def fail(self, error: Exception) -> None:
        """End what still runs; whoever reads the updates gets the error, at once."""
        self._stop()
        self._channel.fail(error)

    def cancel(self) -> None:
        """End what still runs: nobody reads the updates any more. Any number of times."""
        self._stop()
        if self._num_left:
            self._num_left = 0
            self._metrics.count_end("cancelled")

    async def updates(self) -> AsyncIterator[Update]:
        """What happens, until every choice has ended.

        Errors: that of `fail`; ApiError where the engine fails, DeviceError where the card has.
        """
        while self._num_left:
            now_s, index, event = await self._channel.get()
            choice = self._choices[index]
            if isinstance(event, TokenEvent):
                if choice.reason is None:
                    delta = self._on_token(index, choice, event, now_s)
                    if delta is not None:
                        yield delta
            elif isinstance(event, PromptProgress):
                yield Progress(index, event.done_tokens, event.total_tokens, event.cached_tokens)
            else:
                for update in self._on_finished(index, choice, event, now_s):
                    yield update

    def _stop(self) -> None:
        for choice in self._choices:
            if choice.ticket is not None and choice.usage is None:
                choice.ticket.cancel()

    def _request(self, index: int) -> Request:
        job = self.job
        return Request(
            prompt_ids=job.prompt_of(index),
            params=job.params_of(index),
            constraint=job.constraints[index],
            top_logprobs=job.top_logprobs,
            expert_trace=job.expert_trace,
        )

    def _on_token(
        self, index: int, choice: _Choice, event: TokenEvent, now_s: float
    ) -> Delta | None:
        is_first = choice.last_token_s is None
        before_s = self._started_s if choice.last_token_s is None else choice.last_token_s
        self._metrics.observe_token(now_s - before_s, is_first=is_first)
        choice.last_token_s = now_s
        choice.num_tokens += 1
        if event.logprob is not None and choice.parts.is_text(event.token_id):
            entry = TokenLogprob(event.token_id, event.logprob, event.top)
            choice.logprobs.append(entry)
        parts = choice.parts.push(event.token_id)
        choice.num_thoughts += choice.parts.is_thinking
        if choice.parts.has_stopped:
            choice.reason = "stop"
        elif not self.job.is_parallel and any(isinstance(part, CallEnd) for part in parts):
            choice.reason = "tool_calls"
        if choice.reason is not None and choice.ticket is not None:
            choice.ticket.cancel()
        delta = self._delta(index, choice, parts)
        if event.experts is not None:
            delta.experts.append(event.experts.tolist())
        return delta if delta.parts or delta.experts else None

    def _delta(self, index: int, choice: _Choice, parts: list[Part]) -> Delta:
        """With the log-probabilities of what is held back no longer."""
        logprobs: list[TokenLogprob] = []
        if choice.logprobs and any(isinstance(part, TextPart) for part in parts):
            logprobs, choice.logprobs = choice.logprobs, []
        return Delta(index, parts, logprobs)

    def _on_finished(
        self, index: int, choice: _Choice, event: Finished, now_s: float
    ) -> list[Update]:
        choice.usage = event.usage
        reason: Reason
        out: list[Update] = []
        if choice.reason is not None:
            reason = choice.reason
        elif event.reason in ("stop", "length"):
            parts = choice.parts.finish()
            out = [self._delta(index, choice, parts)] if parts else []
            is_call = event.reason == "stop" and choice.parts.num_calls > 0
            reason = "tool_calls" if is_call else event.reason
        else:
            what = event.error or "the answer was cancelled"
            if (failure := self._engine.device_failure) is not None:
                raise DeviceError(failure)
            if event.is_refusal:
                raise ApiError(400, what)
            raise ApiError(500, f"the engine failed: {what}", type="server_error")
        self._num_left -= 1
        self._metrics.observe_end(reason, event.usage, choice.num_tokens, now_s - self._started_s)
        return [*out, Ended(index, reason, choice.parts.stop_string)]


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0.0 and count > 0 else 0.0

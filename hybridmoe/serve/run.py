"""One job under way: the engine's events, from its thread, as updates in the event loop.

A run has one choice or several, each a sequence of the engine. What a client sees of a token is
decided here, whichever API it speaks: parts of the answer, log-probabilities of its text,
experts, and how it ended.
"""

import time
import uuid
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
from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import Part, ResponseParser, TextPart
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["Choice", "Delta", "Ended", "Progress", "Reason", "Run", "TokenLogprob", "Update"]

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
class Choice:
    """One choice of a run, as far as it is generated."""

    response: Response
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the text
    experts: list[list[list[int]]] = field(default_factory=list)
    end: Ended | None = None
    ticket: Ticket | None = None
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    held_logprobs: list[TokenLogprob] = field(default_factory=list)  # of text that is held back
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
        self.choices = [Choice(_new_response(tokenizer, job)) for _ in job.constraints]
        try:
            for i, choice in enumerate(self.choices):
                choice.ticket = engine.submit(self._request(i), self._channel.listener(i))
        except BaseException:
            self.cancel()
            raise

    @property
    def num_choices(self) -> int:
        return len(self.choices)

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
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        """Those of them that were thoughts."""
        return sum(choice.num_reasoning_tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache by the first choice of each prompt."""
        firsts = self.choices[:: self.job.choices_per_prompt]
        return sum(choice.usage.cached_tokens for choice in firsts if choice.usage)

    def timings(self) -> dict[str, Any]:
        """Of the first choice, in llama.cpp's names; known once it has ended."""
        usage = self.choices[0].usage
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
            choice = self.choices[index]
            if isinstance(event, TokenEvent):
                if choice.response.finish_reason is None:
                    delta = self._on_token(index, choice, event, now_s)
                    if delta is not None:
                        yield delta
            elif isinstance(event, PromptProgress):
                yield Progress(index, event.done_tokens, event.total_tokens, event.cached_tokens)
            else:
                for update in self._on_finished(index, choice, event, now_s):
                    yield update

    def _stop(self) -> None:
        for choice in self.choices:
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
        self, index: int, choice: Choice, event: TokenEvent, now_s: float
    ) -> Delta | None:
        is_first = choice.last_token_s is None
        before_s = self._started_s if choice.last_token_s is None else choice.last_token_s
        self._metrics.observe_token(now_s - before_s, is_first=is_first)
        choice.last_token_s = now_s
        choice.num_tokens += 1
        response = choice.response
        if event.logprob is not None and response.parser.is_text(event.token_id):
            entry = TokenLogprob(event.token_id, event.logprob, event.top)
            choice.held_logprobs.append(entry)
        parts = response.push(event.token_id)
        choice.num_reasoning_tokens += response.parser.is_thinking
        if response.finish_reason is not None and choice.ticket is not None:
            choice.ticket.cancel()
        delta = self._delta(index, choice, parts)
        if event.experts is not None:
            delta.experts.append(event.experts.tolist())
            choice.experts += delta.experts
        return delta if delta.parts or delta.experts else None

    def _delta(self, index: int, choice: Choice, parts: list[Part]) -> Delta:
        """With the log-probabilities of what is held back no longer."""
        logprobs: list[TokenLogprob] = []
        if choice.held_logprobs and any(isinstance(part, TextPart) for part in parts):
            logprobs, choice.held_logprobs = choice.held_logprobs, []
            choice.logprobs += logprobs
        return Delta(index, parts, logprobs)

    def _on_finished(
        self, index: int, choice: Choice, event: Finished, now_s: float
    ) -> list[Update]:
        choice.usage = event.usage
        response = choice.response
        parts: list[Part] = []
        if response.finish_reason is None:
            if event.reason not in ("stop", "length"):
                raise self._failure(event)
            parts = response.finish(event.reason)
        reason = response.finish_reason
        assert reason is not None and reason != "cancelled", reason
        self._num_left -= 1
        self._metrics.observe_end(reason, event.usage, choice.num_tokens, now_s - self._started_s)
        choice.end = Ended(index, reason, response.parser.stop_string)
        return [self._delta(index, choice, parts), choice.end] if parts else [choice.end]

    def _failure(self, event: Finished) -> Exception:
        """The error of an engine that has not finished a choice."""
        what = event.error or "the answer was cancelled"
        if (failure := self._engine.device_failure) is not None:
            return DeviceError(failure)
        if event.is_refusal:
            return ApiError(400, what)
        return ApiError(500, f"the engine failed: {what}", type="server_error")


def _new_response(tokenizer: Tokenizer, job: Job) -> Response:
    parser = ResponseParser(
        tokenizer,
        stop=job.params.stop,
        may_call=job.may_call,
        tools=job.tools,
        may_think=job.may_think,
        is_thinking=job.is_thinking,
        make_call_id=_opaque_call_id,
    )
    return Response(parser, is_parallel=job.is_parallel)


def _opaque_call_id(name: str, index: int) -> str:
    """Make a unique id of letters, digits, "_" and "-" alone, since clients check both.

    The model's own form, `functions.NAME:N`, stays between it and text/messages.py.
    """
    return f"call_{uuid.uuid4().hex[:24]}"


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0.0 and count > 0 else 0.0

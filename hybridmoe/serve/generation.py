"""Generation: a request under way, with the engine's events as updates in the event loop.

A generation has one or several choices, each a sequence of the engine. Its updates are the same
for every API: parts of the response, log-probabilities of its text, experts, finish reason.
"""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridmoe.engine.engine import RequestHandle
from hybridmoe.engine.request import (
    Finished,
    PromptLogprobs,
    PromptProgress,
    Request,
    TokenEvent,
    Usage,
)
from hybridmoe.errors import ClusterError, DeviceError
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.event_queue import EventQueue
from hybridmoe.serve.llama_timings import timings
from hybridmoe.serve.metrics import Metrics
from hybridmoe.serve.prepare import PreparedRequest
from hybridmoe.serve.served_model import Lease
from hybridmoe.serve.token_experts import ExpertLists
from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import Part, ResponseParser, TextPart
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["Choice", "ChoiceEnd", "Delta", "Generation", "Progress", "TokenLogprob", "Update"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token of the text, and of the likeliest tokens at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a choice's prefill."""

    choice: int
    done_tokens: int
    total_tokens: int
    cached_tokens: int
    elapsed_s: float  # since the request was submitted

    def to_llama_cpp(self) -> dict[str, int]:
        """Convert to llama.cpp's `prompt_progress`."""
        return {
            "total": self.total_tokens,
            "cache": self.cached_tokens,
            "processed": self.done_tokens,
            "time_ms": round(self.elapsed_s * 1e3),
        }


@dataclass(slots=True)
class Delta:
    """Addition of one or several tokens to a choice."""

    choice: int
    parts: list[Part]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    experts: ExpertLists = field(default_factory=ExpertLists)


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """End of a choice."""

    choice: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_string: str | None


Update = Progress | Delta | ChoiceEnd


@dataclass(slots=True)
class Choice:
    """One choice of a generation, as far as it has come."""

    response: Response
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the text
    experts: ExpertLists = field(default_factory=ExpertLists)
    end: ChoiceEnd | None = None
    handle: RequestHandle | None = None
    token_ids: list[int] = field(default_factory=list)  # without the end token
    num_reasoning_tokens: int = 0
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)  # of parts of the prompt
    held_logprobs: list[TokenLogprob] = field(default_factory=list)  # of text that is held back
    last_token_s: float | None = None
    usage: Usage | None = None  # once it has ended
    last_usage: Usage | None = None  # up to its last token


class Generation:
    """Sequences of one request in the engine, started on construction in a running event loop.

    Read `updates` once, and call `cancel` afterwards, which also releases the model.
    """

    def __init__(self, lease: Lease, request: PreparedRequest, metrics: Metrics) -> None:
        """Submit all choices. Errors, with nothing left running: those of `Engine.submit`."""
        self.request = request
        self.tokenizer = lease.llm.tokenizer
        self.model_name = lease.model.name
        self.context_tokens = lease.llm.context_tokens
        self.fingerprint = lease.model.fingerprint
        self._lease = lease
        self.has_failed = False
        self._engine = lease.llm.engine
        self.created = int(time.time())
        self._metrics = metrics
        self._queue = EventQueue()
        self._started_s = time.perf_counter()
        self._num_unfinished = len(request.constraints)
        self.choices = [Choice(_new_response(self.tokenizer, request)) for _ in request.constraints]
        try:
            for i, choice in enumerate(self.choices):
                choice.handle = self._engine.submit(
                    self._engine_request(i), self._queue.listener(i)
                )
        except BaseException:
            self.cancel()
            raise

    @property
    def num_choices(self) -> int:
        return len(self.choices)

    @property
    def is_done(self) -> bool:
        """True once every choice has ended."""
        return self._num_unfinished == 0

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts. Each prompt counts once, for any number of choices."""
        return sum(len(prompt) for prompt in self.request.prompts)

    @property
    def completion_tokens(self) -> int:
        """Number of tokens generated so far, of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        """Number of generated tokens that are reasoning."""
        return sum(choice.num_reasoning_tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Number of prompt tokens that each prompt's first choice found in the prefix cache."""
        firsts = self.choices[:: self.request.choices_per_prompt]
        usages = (choice.usage or choice.last_usage for choice in firsts)
        return sum(usage.cached_tokens for usage in usages if usage)

    def usage(self) -> dict[str, Any]:
        """Token counts so far, in OpenAI's structure."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def timings(self, index: int = 0) -> dict[str, Any]:
        """Timings of a choice so far, in llama.cpp's names; empty before a token."""
        usage = self.choices[index].usage or self.choices[index].last_usage
        return timings(usage) if usage is not None else {}

    async def finish(self) -> list[Choice]:
        """Await the end of every choice. Cancelling this cancels the choices."""
        try:
            async for _ in self.updates():
                pass
            return self.choices
        finally:
            self.cancel()

    def fail(self, error: Exception) -> None:
        """Cancel unfinished choices, and raise `error` at the reader of the updates at once."""
        self.has_failed = True
        self._stop()
        self._queue.fail(error)

    def cancel(self) -> None:
        """Cancel unfinished choices and release the model: nothing is read any more. Idempotent."""
        self._stop()
        self._lease.release()
        if self._num_unfinished:
            self._num_unfinished = 0
            self._metrics.count_end("cancelled")

    async def updates(self) -> AsyncIterator[Update]:
        """Yield updates until every choice has ended.

        Errors: that of `fail`; ApiError if the engine fails, DeviceError if the GPU has failed.
        """
        while self._num_unfinished:
            now_s, index, event = await self._queue.get()
            choice = self.choices[index]
            if isinstance(event, TokenEvent):
                if choice.response.finish_reason is None:
                    delta = self._on_token(index, choice, event, now_s)
                    if delta is not None:
                        yield delta
            elif isinstance(event, PromptLogprobs):
                choice.prompt_logprobs.append(event)
            elif isinstance(event, PromptProgress):
                yield Progress(
                    index,
                    event.done_tokens,
                    event.total_tokens,
                    event.cached_tokens,
                    now_s - self._started_s,
                )
            else:
                for update in self._on_finished(index, choice, event, now_s):
                    yield update

    def prompt_logprobs(self, index: int) -> list[PromptLogprobs]:
        """Log-probabilities of a choice's prompt, once it has been read for its first choice."""
        return self.choices[self.request.first_of(index)].prompt_logprobs

    def _stop(self) -> None:
        for choice in self.choices:
            if choice.handle is not None and choice.usage is None:
                choice.handle.cancel()

    def _engine_request(self, index: int) -> Request:
        request = self.request
        return Request(
            prompt_ids=request.prompt_of(index),
            params=request.params_of(index),
            constraint=request.constraints[index],
            top_logprobs=request.top_logprobs,
            prompt_logprobs=request.prompt_logprobs if request.first_of(index) == index else None,
            expert_trace=request.expert_trace,
            dry_breakers=request.dry_breakers,
        )

    def _on_token(
        self, index: int, choice: Choice, event: TokenEvent, now_s: float
    ) -> Delta | None:
        is_first = choice.last_token_s is None
        before_s = self._started_s if choice.last_token_s is None else choice.last_token_s
        self._metrics.observe_token(now_s - before_s, is_first=is_first)
        choice.last_token_s = now_s
        choice.token_ids.append(event.token_id)
        choice.last_usage = event.usage
        response = choice.response
        if event.logprob is not None and response.parser.is_text(event.token_id):
            entry = TokenLogprob(event.token_id, event.logprob, event.top)
            choice.held_logprobs.append(entry)
        was_thinking = response.parser.is_thinking
        parts = response.push(event.token_id)
        choice.num_reasoning_tokens += was_thinking and response.parser.is_thinking
        if response.finish_reason is not None and choice.handle is not None:
            choice.handle.cancel()
        delta = self._delta(index, choice, parts)
        if event.experts is not None:
            delta.experts.append(event.experts)
            choice.experts.extend(delta.experts)
        return delta if delta.parts or delta.experts else None

    def _delta(self, index: int, choice: Choice, parts: list[Part]) -> Delta:
        """Make a delta, with the log-probabilities of text that was held back until now."""
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
        self._num_unfinished -= 1
        self._metrics.observe_end(
            reason, event.usage, len(choice.token_ids), now_s - self._started_s
        )
        choice.end = ChoiceEnd(index, reason, response.parser.stop_string)
        delta = self._delta(index, choice, parts)
        if self.request.echoes is not None and response.parser.stop_string is None:
            delta.logprobs += self._last_logprobs(choice, event)
        return [delta, choice.end] if delta.parts or delta.logprobs else [choice.end]

    def _last_logprobs(self, choice: Choice, event: Finished) -> list[TokenLogprob]:
        """Take those of tokens without text at a choice's end, the end token included.

        Evaluation harnesses take every entry behind the prompt's for a generated token, and cut
        off one of them for `max_tokens: 1`.
        """
        entries, choice.held_logprobs = choice.held_logprobs, []
        stop = event.stop_token
        if stop is not None and stop.logprob is not None:
            entries.append(TokenLogprob(stop.token_id, stop.logprob, stop.top))
        choice.logprobs += entries
        return entries

    def _failure(self, event: Finished) -> Exception:
        """Make the error of an event that ends a choice early."""
        self.has_failed = True
        what = event.error or "the response was cancelled"
        if (failure := self._engine.device_failure) is not None:
            return DeviceError(failure)
        if self._engine.outage is not None:
            return ClusterError(what)
        if event.is_refusal:
            return ApiError(400, what)
        return ApiError(500, f"the engine failed: {what}", type="server_error")


def _new_response(tokenizer: Tokenizer, request: PreparedRequest) -> Response:
    parser = ResponseParser(
        tokenizer,
        syntax=request.tool_syntax,
        stop=request.params.stop,
        may_call=request.may_call,
        tools=request.tools,
        may_think=request.may_think,
        is_thinking=request.is_thinking,
        make_call_id=lambda name, index: _opaque_id(request.call_id_prefix),
    )
    return Response(parser, is_parallel=request.is_parallel)


def _opaque_id(prefix: str) -> str:
    """Make a unique id of letters, digits, "_" and "-" alone, since clients check both.

    The model sees its own form, `functions.NAME:N`, which text/messages.py writes.
    """
    return f"{prefix}{uuid.uuid4().hex[:24]}"

"""Fake engine that responds by rule, and an LLM around it: the endpoint's tests need no model.

The user's message decides the response: "say TEXT" (marks of calls and reasoning included),
"count N" (N tokens), "slow N" (N tokens, one each 10 ms; without N endless), "wait" (a prompt that
takes 0.5 s), "read N" (a prompt in N steps of 10 ms), "break" (fails after a token).
"""

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.dry import SequenceBreakers
from hybridmoe.engine.request import (
    Event,
    Finished,
    PromptLogprobs,
    PromptProgress,
    Request,
    TokenEvent,
    TokenExperts,
    Usage,
)
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.stats import EngineStats
from hybridmoe.errors import (
    ClusterError,
    ConfigError,
    ContextLengthError,
    DeviceError,
    QueueFullError,
)
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.problem import Budgets
from hybridmoe.text.chat_encoding import ChatPrompt, encode_prompt
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.thinking_options import PromptOptions, ThinkingOptions
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import choose_syntax

__all__ = ["FakeEngine", "FakeLLM"]

# Of three layers: the first from VRAM and RAM, the others from RAM and disk
_EXPERTS = TokenExperts(
    np.arange(6, dtype=np.int16).reshape(3, 2), np.array([[0, 1], [1, 2], [1, 2]], np.uint8)
)
_ASKED = re.compile(r"<\|im_user\|>user<\|im_middle\|>((?:(?!<\|im_user\|>).)*?)<\|im_end\|>", re.S)


class FakeTicket:
    """As the engine's."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.finished = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class FakeEngine:
    """As `hybridmoe.engine.engine.Engine`; one thread for each request."""

    def __init__(self, tokenizer: Tokenizer, context_tokens: int, most: int = 16) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self.config = EngineConfig(context_tokens=context_tokens, max_running=most, max_waiting=0)
        self.device_failure: str | None = None
        self.outage: str | None = None
        self.requests: list[Request] = []
        self.tickets: list[FakeTicket] = []
        self.experts: ExpertStats | None = None  # of one request
        self.num_steps = 0

    def submit(self, request: Request, listener: Callable[[Event], None]) -> FakeTicket:
        if self.device_failure is not None:
            raise DeviceError(self.device_failure)
        if self.outage is not None:
            raise ClusterError(self.outage)
        if len(request.prompt_ids) >= self._context_tokens:
            raise ContextLengthError(len(request.prompt_ids), self._context_tokens)
        if not all(0 <= i < self._tokenizer.num_tokens for i in request.prompt_ids):
            raise ConfigError("a token is outside the vocabulary")
        if self.num_running >= self.config.max_running:
            raise QueueFullError("the queue is full: 0 requests wait")
        self.requests.append(request)
        ticket = FakeTicket()
        self.tickets.append(ticket)
        threading.Thread(target=self._work, args=(request, listener, ticket), daemon=True).start()
        return ticket

    @property
    def num_running(self) -> int:
        return sum(not ticket.finished.is_set() for ticket in self.tickets)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.num_running, waiting=0, kv_pages_total=4, kv_pages_used=1,
            kv_pages_cached=2, kv_page_tokens=16, steps=self.num_steps, prompt_tokens=0,
            cached_tokens=0, generated_tokens=0, preempted=0,
            experts=self.experts and reduce(add, len(self.requests) * [self.experts], self.experts),
        )  # fmt: skip

    def close(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    def _work(
        self, request: Request, listener: Callable[[Event], None], ticket: FakeTicket
    ) -> None:
        prompt = self._tokenizer.decode(request.prompt_ids, skip_special=False)
        order = self._order(prompt)
        total = len(request.prompt_ids)
        if order == "wait":
            time.sleep(0.5)
        num_steps = int(order[5:]) if order.startswith("read ") else 2
        for step in range(1, num_steps + 1):
            if num_steps > 2:
                time.sleep(0.01)
            done = total * step // num_steps
            listener(PromptProgress(done, total, 1))
        if request.prompt_logprobs is not None and total > 1:
            for start, end in ((1, total // 2 + 1), (total // 2 + 1, total)):
                listener(_scored(start, end, request.prompt_logprobs))
        limit = request.params.max_tokens
        if limit is None:
            limit = self._context_tokens - total
        reason, error, count = "stop", None, 0
        for token_id in self._answer(order, request.params):
            if ticket.cancelled.is_set():
                reason = "cancelled"
                break
            if count == limit:
                reason = "length"
                break
            count += 1
            listener(self._token(token_id, request))
            if order == "lose the card":
                self.device_failure = "the GPU failed: it is gone; restart to use it again"
            if order in ("break", "lose the card"):
                reason, error = "error", "out of order"
                break
        ticket.finished.set()
        usage = Usage(
            prompt_tokens=total, cached_tokens=1, generated_tokens=count, queue_s=0.0,
            prompt_s=0.1, decode_s=0.2,
        )  # fmt: skip
        listener(Finished(reason, usage, error))

    def _order(self, prompt: str) -> str:
        asked = _ASKED.findall(prompt)
        return asked[-1] if asked else prompt

    def _token(self, token_id: int, request: Request) -> TokenEvent:
        num_top = request.top_logprobs
        experts = _EXPERTS if request.expert_trace else None
        if num_top is None:
            return TokenEvent(token_id, Usage(), None, (), experts)
        top = tuple((i, -1.0 - i) for i in range(num_top))
        logprob = float("-inf") if token_id == 65 else -0.5
        return TokenEvent(token_id, Usage(), logprob, top, experts)

    def _answer(self, order: str, params: SamplingParams) -> Iterator[int]:
        verb, _, rest = order.partition(" ")
        if verb == "say":
            yield from self._tokenizer.encode(rest, parse_special=True)
        elif verb == "count":
            yield from self._tokenizer.encode("a " * int(rest))[: int(rest)]
        elif verb == "slow":
            for _ in range(int(rest)) if rest else itertools.count():
                time.sleep(0.01)
                yield 65
        else:
            yield from self._tokenizer.encode("Hello! How can I help?")


def _scored(start: int, end: int, num_top: int) -> PromptLogprobs:
    """Log-probability -i / 4 of the prompt's i-th token, whose rank is i."""
    places = np.arange(start, end)
    top_ids = np.tile(np.arange(num_top, dtype=np.int32), (len(places), 1))
    return PromptLogprobs(
        start,
        (-places / 4).astype(np.float32),
        places.astype(np.int32),
        top_ids,
        (-1.0 - top_ids).astype(np.float32),
    )


class FakeLLM:
    """As much of `hybridmoe.LLM` as the endpoint uses."""

    def __init__(self, context_tokens: int = 1024) -> None:
        self.file = GGUFFile.open(demo_path())
        self.config = ModelConfig.from_metadata(self.file.metadata)
        self.tokenizer = Tokenizer(self.file.path, self.file.metadata)
        self.tool_syntax = choose_syntax(self.tokenizer)
        self.context_tokens = context_tokens
        self.plan = plan_memory(
            self.config,
            self.file.tensors.values(),
            EngineConfig(context_tokens=context_tokens),
            Budgets(ram_bytes=1 << 40),
        )
        self.engine = FakeEngine(self.tokenizer, context_tokens)
        self.template = ChatTemplate.from_metadata(self.file.metadata, self.tokenizer)

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        limit: PromptLimit,
        options: PromptOptions,
    ) -> ChatPrompt:
        return encode_prompt(self.template, self.tokenizer, messages, tools, limit, options)

    def check_thinking(self, thinking: ThinkingOptions) -> None:
        self.template.switches.choose(PromptOptions(thinking=thinking))

    def sampling_params(self, overrides: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams(**overrides)

    def sequence_breakers(self, params: SamplingParams) -> SequenceBreakers:
        return {}

    def close(self) -> None:
        self.engine.close()
        self.tokenizer.close()
        self.file.close()

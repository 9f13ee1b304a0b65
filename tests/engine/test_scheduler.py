"""The scheduler and the cache under any load: nobody starves, nothing is exceeded or lost.

Steps are the engine's own; the model is one whose next token depends on every token before it, as
the pages have it, so that an answer is right only if no page was lost, mixed up or forgotten.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from k2_config import K2

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine import Event, Finished, Request, SamplingParams, TokenEvent
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.step_runner import StepRunner
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.planning.kv_plan import pages_for, plan_kv

MODEL = ModelConfig.from_metadata(K2 | {"deepseek2.block_count": 2})
VOCAB = 3  # so few tokens that prompts begin alike
EOS = VOCAB  # the model never chooses it


def mark_of(before: int, token_id: int) -> int:
    return (before * 31 + token_id + 7) % 9973


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    """The answer of the model below, if nothing goes wrong."""
    mark, out = 0, list[int]()
    for token_id in prompt:
        mark = mark_of(mark, token_id)
    while len(out) < num_tokens:
        out.append(mark % VOCAB)
        mark = mark_of(mark, out[-1])
    return out


class MarkModel:
    """Puts a mark of a token's whole past into its row, of which it makes the next token."""

    def __init__(self, cache: KvCache) -> None:
        self._marks = cache.data[0].view(torch.float32)[..., 0].numpy()  # (pages, PAGE_TOKENS)

    def forward(self, ids: list[int], spans: list[Span], *_: Any) -> torch.Tensor:
        states, left = [], iter(ids)
        for span in spans:
            for position in range(span.start, span.start + span.num_tokens):
                before = self._marks[self._at(span, position - 1)] if position else 0
                mark = mark_of(int(before), next(left))
                self._marks[self._at(span, position)] = mark
                states.append(mark)
        return torch.tensor(states)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(states % VOCAB, VOCAB + 1).to(torch.float32)

    def is_finite(self, numbers: torch.Tensor) -> bool:
        return bool(numbers.isfinite().all())

    @staticmethod
    def _at(span: Span, position: int) -> tuple[int, int]:
        return span.pages[position // PAGE_TOKENS], position % PAGE_TOKENS


class AnyPacer:
    """Grants prompts anything, but not twice in a row nothing."""

    def __init__(self, most: int, seed: int) -> None:
        self._most = most
        self._rng = random.Random(seed)
        self._last = 1

    def budget(self, num_decodes: int) -> int:
        grants = [n for n in (0, 1, 2, self._most) if n or self._last]
        self._last = self._rng.choice(grants) if num_decodes else self._most
        return self._last

    def note(self, *_: Any) -> None:
        pass


@dataclass
class Client:
    """A request as whoever made it sees it."""

    sequence: Sequence
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    ends: list[Finished] = field(default_factory=list)

    def check(self) -> None:
        """That it ended once, with the answer that it gets alone, or the beginning of that."""
        (end,) = self.ends
        wanted = expected(self.prompt, self.sequence.limit)
        assert end.reason == ("cancelled" if self.sequence.is_cancelled else "length"), end
        assert self.tokens == (wanted if end.reason == "length" else wanted[: len(self.tokens)])
        assert not self.sequence.holding.pages


class EngineMachine(RuleBasedStateMachine):
    """Requests come, are cancelled, and run step by step."""

    @initialize(
        num_pages=st.integers(2, 6),
        max_running=st.integers(1, 5),
        chunk_tokens=st.sampled_from([1, 5, 40, 500]),
        speculate=st.integers(0, 3),
        grants=st.integers(0, 99),
        data=st.data(),
    )
    def begin(
        self,
        num_pages: int,
        max_running: int,
        chunk_tokens: int,
        speculate: int,
        grants: int,
        data: Any,
    ) -> None:
        self.config = EngineConfig(
            context_tokens=data.draw(st.integers(PAGE_TOKENS, num_pages * PAGE_TOKENS)),
            kv_tokens=num_pages * PAGE_TOKENS,
            kv_type="f32",
            max_running=max_running,
            chunk_tokens=chunk_tokens,
            speculate=speculate,
        )
        self.cache = KvCache(MODEL, plan_kv(MODEL, self.config, 0))
        self.scheduler = Scheduler(self.cache, self.config)
        self.scheduler.pacer = AnyPacer(chunk_tokens, grants)  # type: ignore[assignment]
        model: Any = MarkModel(self.cache)
        self.runner = StepRunner(model, {EOS}, self.cache, self.scheduler)
        self.clients: list[Client] = []
        self.open: list[Client] = []
        self.since_progress = 0

    @rule(
        ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4),
        num_prompt=st.integers(1, 400),
        num_tokens=st.integers(0, 150),
    )
    def submit(self, ids: list[int], num_prompt: int, num_tokens: int) -> None:
        most = min(num_prompt, self.config.context_tokens)
        prompt = (ids * num_prompt)[:most]
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
        client = Client(None, prompt)  # type: ignore[arg-type]

        def listen(event: Event) -> None:
            if isinstance(event, TokenEvent):
                client.tokens.append(event.token_id)
            elif isinstance(event, Finished):
                client.ends.append(event)

        request = Request(prompt_ids=prompt, params=params)
        context_tokens = self.config.context_tokens
        client.sequence = Sequence(request, listen, VOCAB + 1, context_tokens)
        self.clients.append(client)
        self.open.append(client)
        self.scheduler.add(client.sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        data.draw(st.sampled_from(self.open)).sequence.is_cancelled = True

    @rule(count=st.integers(1, 40))
    def step(self, count: int) -> None:
        for _ in range(count):
            self._step()

    def _step(self) -> None:
        """As the engine's thread does it."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.is_cancelled:
                self.runner.finish(sequence, "cancelled")
        self._drop_ended()
        had_work = self.scheduler.has_work
        before = self._oldest()
        parts = self.scheduler.plan()
        assert bool(parts) == had_work
        self._check_plan(parts)
        if parts:
            self.runner.run(parts)
        self._drop_ended()
        self.since_progress = 0 if self._oldest() != before else self.since_progress + had_work
        assert self.since_progress < 2, "the oldest request starves"

    def _drop_ended(self) -> None:
        self.open = [client for client in self.open if not client.ends]

    def _oldest(self) -> tuple[int, int] | None:
        """The request that came first, and how far it is."""
        if not self.open:
            return None
        sequence = self.open[0].sequence
        return sequence.number, sequence.num_computed

    def _check_plan(self, parts: list[ScheduledChunk]) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        planned = [part.sequence for part in parts]
        assert len({sequence.number for sequence in planned}) == len(parts)
        assert all(sequence in running for sequence in planned)
        assert all(s in planned for s in running if s.num_pending == 1), "an answer waits"
        for part in parts:
            assert part.num_tokens <= part.sequence.num_pending
            end = part.sequence.num_computed + part.num_tokens + len(part.proposed)
            assert pages_for(end) <= len(part.sequence.holding.pages)
        if waiting and len(running) < self.config.max_running:
            room = min(len(waiting[0].ids) + 1, self.config.context_tokens)
            is_reading = any(s.num_pending > 1 for s in running)
            assert is_reading or pages_for(room) > self.cache.num_available, "it would have fitted"

    @invariant()
    def slots_and_pages_are_kept(self) -> None:
        running = self.scheduler.running
        assert len(running) <= self.config.max_running
        assert all(not sequence.holding.pages for sequence in self.scheduler.waiting)
        shared = {node.page for s in running for node in s.holding.nodes}
        own = [page for s in running for page in s.holding.pages[len(s.holding.nodes) :]]
        assert len(set(own)) == len(own) and not shared & set(own)
        total = self.cache.plan.num_pages
        assert self.cache.num_available + len(shared) + len(own) == total

    def teardown(self) -> None:
        """Whatever is left ends, in so many steps, with the right answer."""
        if not hasattr(self, "clients"):
            return
        steps = 2 * sum(len(c.prompt) + c.sequence.limit + 1 for c in self.clients) + 2
        while self.scheduler.has_work:
            self._step()
            steps -= 1
            assert steps > 0, "it goes on for ever"
        for client in self.clients:
            client.check()
        assert self.cache.num_available == self.cache.plan.num_pages


EngineMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=25)
TestEngine = EngineMachine.TestCase

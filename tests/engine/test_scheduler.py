"""Scheduler and KV cache under random load: no request starves, no limit is exceeded.

Steps are run by the engine's StepRunner. The model's next token depends on all tokens before it, as
stored in the pages. So a response is right only if no page was lost or mixed up.
"""

import os
import random
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hash_model import EOS, MODEL, VOCAB, HashModel, expected
from hash_run import patient
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hybridmoe.config import EngineConfig, Expansion
from hybridmoe.engine.drafter import Speculator
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.kv_disk_files import page_files
from hybridmoe.engine.prompt_lookup import PromptLookup
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.step_runner import StepRunner
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.option import FolderLimit
from hybridmoe.planning.kv_plan import pages_for, plan_kv


class RandomBudget:
    """A prefill budget at random, but not 0 twice in a row."""

    def __init__(self, max_tokens: int, seed: int) -> None:
        self._max_tokens = max_tokens
        self._rng = random.Random(seed)
        self._last = 1
        self._num_decodes = 0

    def num_tokens(self, num_decodes: int) -> int:
        budgets = [n for n in (0, 1, 2, self._max_tokens) if n or self._last]
        self._last = self._rng.choice(budgets) if num_decodes else self._max_tokens
        self._num_decodes = num_decodes
        return self._last

    def update(self, num_decodes: int, num_prefill: int, seconds: float) -> None:
        assert num_decodes == self._num_decodes
        assert num_prefill <= self._last


@dataclass
class Client:
    """A request with the events that its client got."""

    sequence: Sequence
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    ends: list[Finished] = field(default_factory=list)

    def check(self) -> None:
        """Check that it finished once, with the right response, or a prefix of it if cancelled."""
        (end,) = self.ends
        wanted = expected(self.prompt, self.sequence.max_new_tokens)
        assert end.reason == ("cancelled" if self.sequence.is_cancelled else "length"), end
        assert self.tokens == (wanted if end.reason == "length" else wanted[: len(self.tokens)])
        assert not self.sequence.block_table.pages


class EngineMachine(RuleBasedStateMachine):
    """Requests are submitted, cancelled, and run step by step."""

    disk: KvDisk | None = None

    @initialize(
        num_pages=st.integers(2, 6),
        max_running=st.integers(1, 5),
        chunk_tokens=st.sampled_from([1, 5, 40, 500]),
        speculate=st.integers(0, 3),
        least_expanded=st.sampled_from([0, 8, 100]),
        seed=st.integers(0, 99),
        data=st.data(),
    )
    def start(
        self,
        num_pages: int,
        max_running: int,
        chunk_tokens: int,
        speculate: int,
        least_expanded: int,
        seed: int,
        data: Any,
    ) -> None:
        self.config = EngineConfig(
            context_tokens=data.draw(st.integers(PAGE_TOKENS, num_pages * PAGE_TOKENS)),
            kv_tokens=num_pages * PAGE_TOKENS,
            kv_type="f32",
            max_running=max_running,
            chunk_tokens=chunk_tokens,
        )
        self.cache = KvCache(MODEL, plan_kv(MODEL, self.config, 0))
        self.expansion = Expansion(least_expanded)
        self.make_scheduler()
        self.scheduler.prefill_budget = RandomBudget(chunk_tokens, seed)  # type: ignore[assignment]
        model: Any = HashModel(self.cache)
        speculator = Speculator(PromptLookup(), speculate, self.cache) if speculate else None
        self.runner = StepRunner(
            model, {EOS}, self.cache, self.scheduler, disk=self.disk, speculator=speculator
        )
        self.clients: list[Client] = []
        self.open: list[Client] = []
        self.since_progress = 0

    def make_scheduler(self) -> None:
        self.scheduler = Scheduler(self.cache, self.config, expansion=self.expansion)

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
        """Run one step as the engine's thread does."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.is_cancelled:
                self.runner.finish(sequence, "cancelled")
        self._drop_ended()
        had_work = self.scheduler.has_work
        before = self._oldest()
        chunks = self.scheduler.schedule()
        assert bool(chunks) == had_work
        self._check_chunks(chunks)
        if chunks:
            self.runner.run(chunks)
        self._drop_ended()
        self.since_progress = 0 if self._oldest() != before else self.since_progress + had_work
        assert self.since_progress < 2, "the oldest request starves"

    def _drop_ended(self) -> None:
        self.open = [client for client in self.open if not client.ends]

    def _oldest(self) -> tuple[int, int] | None:
        """The oldest request and its progress."""
        if not self.open:
            return None
        sequence = self.open[0].sequence
        return sequence.request_id, sequence.num_computed

    def _check_chunks(self, chunks: list[ScheduledChunk]) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        scheduled = [chunk.sequence for chunk in chunks]
        assert len({sequence.request_id for sequence in scheduled}) == len(chunks)
        assert all(sequence in running for sequence in scheduled)
        assert all(s in scheduled for s in running if s.num_pending == 1), "a decode waits"
        for chunk in chunks:
            assert chunk.num_tokens <= chunk.sequence.num_pending
            assert not chunk.draft_ids
            if chunk.num_expanded:
                last = chunk.sequence.num_computed + chunk.num_expanded
                assert self.expansion.least_chunk <= chunk.num_expanded <= chunk.num_tokens
                assert last < chunk.sequence.num_prompt
            end = chunk.sequence.num_computed + chunk.num_tokens
            assert pages_for(end) <= len(chunk.sequence.block_table.pages)
        if waiting and len(running) < self.config.max_running:
            num_tokens = min(len(waiting[0].ids) + 1, self.config.context_tokens)
            is_prefilling = any(s.num_pending > 1 for s in running)
            num_missing = pages_for(num_tokens) - self.cache.num_available_pages
            assert is_prefilling or num_missing > 0, "it would have fitted"

    @invariant()
    def no_limit_is_exceeded_and_no_page_lost(self) -> None:
        running = self.scheduler.running
        assert len(running) <= self.config.max_running
        assert all(not sequence.block_table.pages for sequence in self.scheduler.waiting)
        shared = {node.page for s in running for node in s.block_table.nodes}
        own = [page for s in running for page in s.block_table.pages[len(s.block_table.nodes) :]]
        assert len(set(own)) == len(own) and not shared & set(own)
        total = self.cache.plan.num_pages
        assert self.cache.num_available_pages + len(shared) + len(own) == total

    def teardown(self) -> None:
        """Run to the end: in a bounded number of steps, all responses right."""
        if not hasattr(self, "clients"):
            return
        steps = 2 * sum(len(c.prompt) + c.sequence.max_new_tokens + 1 for c in self.clients) + 2
        while self.scheduler.has_work:
            self._step()
            steps -= 1
            assert steps > 0, "it never ends"
        for client in self.clients:
            client.check()
        assert self.cache.num_available_pages == self.cache.plan.num_pages


EngineMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=25)
TestEngine = EngineMachine.TestCase


class DiskMachine(EngineMachine):
    """With a KV cache on disk, whose files vanish and are damaged between the steps."""

    def make_scheduler(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        limit = FolderLimit(root, 6 << 20)
        self.disk = patient(KvDisk(limit, self.cache, "hash", lambda: None))
        self.scheduler = Scheduler(self.cache, self.config, self.disk, self.expansion)

    @rule(seed=st.integers(0, 99), must_remove=st.booleans())
    def damage(self, seed: int, must_remove: bool) -> None:
        found = sorted(page_files(Path(self.folder.name)))
        path = Path(random.Random(seed).choice(found).path) if found else None
        with suppress(FileNotFoundError):
            if path is not None and must_remove:
                path.unlink()
            elif path is not None:
                os.truncate(path, path.stat().st_size // 2)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "disk"):
            self.disk.close()
            self.folder.cleanup()


DiskMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestEngineWithDisk = DiskMachine.TestCase

"""Spells of a soak: one split of a model over three tiers each, under one fault of the disk."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench._random_split import RandomSplit, different_counters
from hybridmoe import _C
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.config import ModelConfig
from hybridmoe.errors import DiskError, StalledReadError
from hybridmoe.experts.disk import cached_experts
from hybridmoe.experts.policy import CacheShape
from hybridmoe.experts.routing_trace import Trace
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.weights import Weights, routed_experts

__all__ = ["FAULTS", "Spell", "run_spell"]

_PROMPT_TOKENS, _CONVERSATION_TOKENS = 24, 120
_MOST_FAILURES = 500  # of a step, one after the other
_CHECKED_SLOTS = 8
_STALL_S = 0.05
_MOST_VRAM, _MOST_RAM = 1 / 6, 1 / 4  # of all experts


class Spell:
    """A file that is open in a split of its own."""

    def __init__(self, path: Path, seed: int, num_tokens: int) -> None:
        self.path, self.counts = path, Counter[str]()
        self.faults = _C.ReadFaults(seed)
        self.is_unwanted = False  # what a step waits for
        self.allowed: tuple[type[Exception], ...] = ()
        self.is_last = False  # a step that fails is the last one
        self.file = file = GGUFFile.open(path)
        config = ModelConfig.from_metadata(file.metadata)
        self.experts = routed_experts(Weights(file), config)
        with mock.patch.object(_C, "FileReader", partial(_C.FileReader, faults=self.faults)):
            self.split = RandomSplit(
                file, self.experts, seed, most_vram=_MOST_VRAM, most_ram=_MOST_RAM
            )
        self.card, self.random = self.split.card, self.split.random
        with mock.patch.object(cached_experts, "STALL_S", _STALL_S):
            self.card.ram.abandon_when(lambda: self.is_unwanted)
        self.split.load()
        self.trace = _trace(self.split.shape, num_tokens, seed)

    def run_step(self, ids: NDArray[np.int32]) -> None:
        """Run ids (T, L, K) until it succeeds, and check after each try."""
        tokens, card = len(ids), self.card
        x = torch.from_numpy(self.random.standard_normal((tokens, self.experts.hidden), np.float32))
        for _ in range(_MOST_FAILURES):
            try:
                card.begin_step(tokens)
                for index, layer in enumerate(self.experts.numbers):
                    chosen = torch.from_numpy(np.ascontiguousarray(ids[:, index]))
                    weights = torch.full(chosen.shape, 1 / chosen.shape[1])
                    card.submit(layer, x, chosen, weights).result()
                card.end_step()
            except self.allowed as error:
                assert "\n" not in str(error), error
                self.counts[type(error).__name__] += 1
                card.check(_CHECKED_SLOTS)
                if self.is_last:
                    return
                continue
            card.check(_CHECKED_SLOTS)
            self.counts["steps"] += 1
            return
        raise AssertionError(f"a step failed {_MOST_FAILURES} times: {self.counts}")

    def is_at(self, share: float) -> bool:
        """Return True before the step that ends this share of the spell."""
        return self.counts["steps"] == int(share * len(self.trace.steps))

    def check_counters(self) -> None:
        """Compare with the simulator, if no step has failed."""
        if self.counts["steps"] == len(self.trace.steps) and len(self.counts) == 1:
            different = different_counters(self.split.counters(), self.split.simulated(self.trace))
            assert not different, different

    def close(self) -> None:
        """Let all reads end, check once more, and close."""
        self.faults.resume()
        self.is_unwanted = False
        try:
            self.card.ram.native.drain()
            self.card.check()
            for place, counters in zip(("VRAM", "RAM"), self.split.counters(), strict=True):
                for name in ("hits", "misses", "uploads", "evictions", "promoted", "returned"):
                    self.counts[f"{place} {name}"] += asdict(counters)[name]
        finally:
            self.card.close()
            self.file.close()


def run_spell(path: Path, fault: str, seed: int, num_tokens: int) -> Counter[str]:
    """Run one spell; counts of steps, of failures and of the tiers.

    Errors: AssertionError for anything wrong, DiskError for a fault that should not show.
    """
    spell = Spell(path, seed, num_tokens)
    inject = FAULTS[fault]
    try:
        ends = np.cumsum(spell.trace.steps)
        for end, count in zip(ends, spell.trace.steps, strict=True):
            inject(spell)
            spell.run_step(spell.trace.ids[end - count : end].astype(np.int32))
            if spell.is_last and spell.counts["DiskError"]:
                break
        spell.check_counters()
    finally:
        spell.close()
    return spell.counts


def _trace(shape: CacheShape, num_tokens: int, seed: int) -> Trace:
    """Draw routing; prompts, and steps of one to four tokens."""
    random = np.random.default_rng(seed)
    trace = synthetic_trace(
        num_tokens,
        num_layers=shape.num_layers,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        locality=Locality(zipf=0.9, reuse=0.4, conversation_tokens=_CONVERSATION_TOKENS),
        seed=seed,
    )
    steps: list[int] = []
    while (left := num_tokens - sum(steps)) > 0:
        is_prompt = random.random() < 1 / 40
        steps.append(min(left, _PROMPT_TOKENS if is_prompt else int(random.integers(1, 5))))
    return Trace(
        trace.header, trace.ids, trace.weights, np.array(steps, np.int32), trace.conversations,
        trace.phases,
    )  # fmt: skip


def _nothing(spell: Spell) -> None:
    return


def _errors(spell: Spell) -> None:
    spell.allowed = (DiskError,)
    spell.faults.fail(errno.EIO, 0.001)


def _short_reads(spell: Spell) -> None:
    spell.faults.shorten(1 + int(spell.random.integers(0, 40)))


def _hanging_reads(spell: Spell) -> None:
    if spell.random.random() < 0.02:
        spell.faults.hang(int(spell.random.integers(1, 5)))
        threading.Timer(float(spell.random.uniform(0.05, 0.5)), spell.faults.resume).start()


def _unwanted(spell: Spell) -> None:
    """Let steps be given up while reads hang."""
    spell.allowed = (StalledReadError,)
    if spell.random.random() < 0.02:
        spell.faults.hang(int(spell.random.integers(1, 5)))
        spell.is_unwanted = True

        def resume() -> None:
            spell.is_unwanted = False
            spell.faults.resume()

        threading.Timer(float(spell.random.uniform(0.2, 0.8)), resume).start()


def _ring_fails(spell: Spell) -> None:
    if spell.is_at(0.25):
        spell.faults.fail_rings(5, errno.EINVAL if spell.random.random() < 0.5 else 0)


def _no_direct_reads(spell: Spell) -> None:
    if spell.is_at(0.25):
        spell.faults.fail(errno.EINVAL, 1.0, direct_only=True)


def _touched(spell: Spell) -> None:
    """Let the file look changed: every read fails from then on."""
    if spell.is_at(0.5):
        spell.allowed, spell.is_last = (DiskError,), True
        os.utime(spell.path)


FAULTS: dict[str, Callable[[Spell], None]] = {
    "none": _nothing,
    "errors": _errors,
    "short reads": _short_reads,
    "hanging reads": _hanging_reads,
    "unwanted": _unwanted,
    "ring fails": _ring_fails,
    "no direct reads": _no_direct_reads,
    "touched": _touched,
    "less memory": _nothing,
}

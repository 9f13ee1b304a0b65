"""Timed prefill and decode of one model, and a timeline of decode."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import numpy as np
import psutil
import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

import hybridmoe
from bench._timeline import Interval, Shares, Token, shares_of
from bench.synthetic import Shape
from hybridmoe import LLM
from hybridmoe.config import EngineConfig
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets

__all__ = ["Decoded", "decode", "fitting_layers", "intervals_of", "opened", "plan_for", "prefill"]
__all__ += ["profiled_decode"]

_COPIES = ("Memcpy", "Memset")  # prefixes of the profiler's names
_PROFILED_TOKENS = 8
_RAM_SHARE, _DISK_SHARE = 0.6, 0.9  # of what is free, for the file


@dataclass(frozen=True, slots=True)
class Decoded:
    """Timed decode of consecutive tokens, after an untimed warm-up."""

    seconds: list[float]  # of each token
    hit_rate: float | None  # of routed experts in VRAM slots; None without slots
    num_slots: int  # VRAM expert slots
    uploads: float = 0.0  # of experts to slots, of a token

    @property
    def tokens_per_s(self) -> float:
        return 1 / float(np.median(self.seconds))


def fitting_layers(shape: Shape, expert_bytes: int, folder: Path) -> int:
    """Compute how many MoE layers fit in RAM and on the disk."""
    capacity = min(
        _RAM_SHARE * psutil.virtual_memory().available, _DISK_SHARE * shutil.disk_usage(folder).free
    )
    return int(capacity // (shape.num_experts * expert_bytes))


def plan_for(path: Path, context_tokens: int, vram_bytes: int) -> Plan:
    """Plan memory for a GPU of this size, with RAM for all experts."""
    outline = read_outline(path)
    engine = EngineConfig(context_tokens=context_tokens, kv_tokens=context_tokens, max_running=1)
    budgets = Budgets(ram_bytes=1 << 60, vram_bytes=vram_bytes)
    return plan_memory(outline.config, outline.tensors, engine, budgets)


@contextmanager
def opened(path: Path, context_tokens: int, **options: Any) -> Iterator[LLM]:
    """Load a model and close it at the end; options: device, vram."""
    options = {"expert_profile": "off"} | options  # a run owes nothing to the one before
    llm = hybridmoe.load(
        path,
        context_tokens=context_tokens,
        kv_tokens=context_tokens,
        max_running=1,
        **options,
    )
    try:
        yield llm
    finally:
        llm.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prefill(llm: LLM, num_tokens: int) -> float:
    """Measure prefill, tokens/s of a random prompt without cached prefix."""
    rng = np.random.default_rng(time.time_ns())
    ids = rng.integers(0, llm.config.vocab_size, num_tokens).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    end = _run(llm, ids, params, lambda event: None)
    return num_tokens / end.usage.prompt_s


def decode(llm: LLM, num_warm_up: int, num_timed: int) -> Decoded:
    """Time decode, token by token, sampled at temperature 2.

    A random model decoded greedily repeats one token, with the same experts.
    """
    times: list[float] = []
    counters = []

    def listen(event: Event) -> None:  # in the engine's thread, after each step
        if isinstance(event, TokenEvent):
            times.append(time.perf_counter())
            stats = llm.expert_stats()
            counters.append(None if stats is None else stats.counters)

    _run(llm, [1, 2, 3], _sampled(num_warm_up + num_timed + 1), listen)
    first, last = counters[num_warm_up], counters[-1]
    hit_rate, num_slots, uploads = None, 0, 0.0
    if first is not None and last is not None:
        hits, misses = last.hits - first.hits, last.misses - first.misses
        hit_rate = (hits - last.late + first.late) / max(1, hits + misses)
        num_slots = llm.expert_stats().num_slots
        uploads = (last.uploads - first.uploads) / num_timed
    return Decoded(np.diff(times[num_warm_up:]).tolist(), hit_rate, num_slots, uploads)


def profiled_decode(llm: LLM, num_warm_up: int) -> Shares:
    """Measure when the CPU, GPU and copies were busy, over a few decoded tokens."""
    ends: list[float] = []
    calls: list[list[Interval]] = []

    def listen(event: Event) -> None:
        if isinstance(event, TokenEvent):
            ends.append(time.monotonic())
            calls.append([Interval(t.begin_s, t.end_s) for t in llm.experts.host_call_times()])

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        _run(llm, [1, 2, 3], _sampled(num_warm_up + _PROFILED_TOKENS + 1), listen)
    tokens = [Token(ends[n - 1], ends[n], calls[n]) for n in range(num_warm_up + 1, len(ends))]
    kernels, copies = [], []
    for name, interval in intervals_of(profiled, DeviceType.CUDA):
        (copies if name.startswith(_COPIES) else kernels).append(interval)
    return shares_of(tokens, kernels, copies)


def intervals_of(profiled: profile, device: DeviceType) -> list[tuple[str, Interval]]:
    """List the profiled intervals of a device by name, in seconds of `time.monotonic`."""
    offset = time.time() - time.monotonic()
    return [
        (event.name(), Interval(event.start_ns() / 1e9 - offset, event.end_ns() / 1e9 - offset))
        for event in profiled.profiler.kineto_results.events()
        if event.device_type() == device
    ]


def _sampled(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=2.0, seed=1, max_tokens=num_tokens, ignore_eos=True)


def _run(llm: LLM, ids: list[int], params: SamplingParams, listen: Any) -> Finished:
    events: SimpleQueue[Event] = SimpleQueue()

    def receive(event: Event) -> None:
        listen(event)
        events.put(event)

    llm.engine.submit(Request(prompt_ids=ids, params=params), receive)
    while not isinstance(event := events.get(), Finished):
        pass
    if event.reason == "error":
        raise click.ClickException(str(event.error))
    return event

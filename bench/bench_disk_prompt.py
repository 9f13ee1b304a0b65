"""Prompts of a model larger than its expert RAM: bytes/s read, beside the disk's sequential rate.

    python bench/bench_disk_prompt.py                   # K2's layers: 384 experts in two layers
    python bench/bench_disk_prompt.py --tokens 512 --expert-ram 2GiB --keep k2.gguf

Runs alone in a control group whose limit is the budget for experts, the other weights, a step's
activations, and 384 MiB for Python; the page cache counts, and is emptied before. The disk is
measured before each prompt and after the last one: O_DIRECT, 8 MiB pieces in file order, four at a
time. A prompt's rate is all that it read over all of its time, attention and routing included.
The first prompt is not counted: it also gets its memory from the system, and fills slots.
--disk-rate makes the disk slower, so that it is the limit on a machine with few cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, Row, machine, print_report
from bench._memory_limit import memory_limit
from bench.synthetic import K2_SLICE, write_synthetic
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Finished, Request
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.model.decoder import Decoder
from hybridmoe.placement.placer import place
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.units import parse_bytes

SHARE = 0.85  # of the sequential rate: the bar
OVERHEAD_BYTES = 3 << 27
PIECE_BYTES, DEPTH, DISK_S = 8 << 20, 4, 2.0
EMBEDDING_GAIN = 3000.0  # of 1, all tokens would go to the same experts


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--experts", default=384, show_default=True, help="Experts per layer.")
@click.option("--layers", default=3, show_default=True, help="Layers; the first is dense.")
@click.option("--expert-ram", default="5.5GiB", show_default=True, help="RAM for experts.")
@click.option(
    "--streamed",
    default=144,
    show_default=True,
    help="Buffers for streamed experts; so many has all of K2 in 60 GiB.",
)
@click.option("--disk-rate", help="Limit the disk to this many bytes/s, e.g. 1GB.")
@click.option("--tokens", default=2048, show_default=True, help="Tokens of a prompt.")
@click.option("--step", default=2048, show_default=True, help="Tokens of a step.")
@click.option("--prompts", default=3, show_default=True, help="Prompts after the first one.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the synthetic file here.")
@click.option("--out", is_flag=False, flag_value="", help="Write the JSON [default: results/].")
@click.option("--worker", is_flag=True, hidden=True)
def main(
    experts: int,
    layers: int,
    expert_ram: str,
    streamed: int,
    disk_rate: str | None,
    tokens: int,
    step: int,
    prompts: int,
    keep: Path | None,
    out: str | None,
    worker: bool,
) -> None:
    budget = parse_bytes(expert_ram)
    engine = EngineConfig(
        context_tokens=tokens + 64, kv_tokens=tokens + 64, max_running=1, chunk_tokens=step
    )
    if worker:
        assert keep is not None
        print(json.dumps(_run(keep, budget, streamed, engine, tokens, prompts)))
        return
    with ExitStack() as stack:
        path = keep or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "prompt.gguf"
        if not path.exists():
            shape = replace(K2_SLICE, num_experts=experts, num_layers=layers)
            write_synthetic(path, shape, embedding_gain=EMBEDDING_GAIN)
        plan = _plan(path, budget, engine)
        sizes = plan.problem.sizes
        allowed = plan.ram.used_bytes - dict(plan.ram.parts)["reserve"] + OVERHEAD_BYTES
        limit = stack.enter_context(memory_limit(allowed))
        if disk_rate is not None:
            if limit is None:
                raise click.ClickException("no control group could be made to limit the disk")
            limit.limit_reads(path, parse_bytes(disk_rate))
        _drop_from_cache(path)
        command = [sys.executable, __file__, "--worker", f"--keep={path}"]
        command += [f"--expert-ram={expert_ram}", f"--tokens={tokens}", f"--step={step}"]
        command += [f"--prompts={prompts}", f"--streamed={streamed}"]
        done = (
            limit.run(command) if limit else subprocess.run(command, capture_output=True, text=True)
        )
        if done.returncode:
            raise click.ClickException(f"ended with {done.returncode}: {done.stderr[-2000:]}")
        found = dict(json.loads(done.stdout.splitlines()[-1]))
        peak = limit.peak_bytes if limit else None
    rows = _rows(found, tokens)
    rows.append(Row("experts over their RAM", sizes.all_expert_bytes / budget, "times"))
    if peak is not None:
        rows.append(Row("memory left", (allowed - peak) / 2**30, "GiB", bar=0.0))
    about = {
        "disk_limit": disk_rate,
        "limit_gib": round(allowed / 2**30, 2) if limit else None,
        **found,
    }
    target = Path(out) if out else RESULTS / f"{machine()['date']}_disk_prompt.json"
    print_report(rows, about=about, out=None if out is None else target)


def _plan(path: Path, budget: int, engine: EngineConfig) -> Plan:
    outline = read_outline(path)
    budgets = Budgets(ram_bytes=1 << 50, expert_ram_bytes=budget)
    return plan_memory(outline.config, outline.tensors, engine, budgets)


def _drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _run(
    path: Path,
    budget: int,
    num_streamed: int,
    engine_config: EngineConfig,
    num_tokens: int,
    num_prompts: int,
) -> dict[str, Any]:
    """Run prompts one after the other, the disk measured between them."""
    rng = np.random.default_rng(0)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        plan = _plan(path, budget, engine_config)
        buffers = plan.disk_cache
        assert buffers is not None, "all experts fit"
        pools = tuple(
            pool._replace(
                num_slots=pool.num_slots + pool.num_staging - num_streamed,
                num_staging=num_streamed,
            )
            for pool in buffers.pools
        )
        plan = replace(plan, disk_cache=buffers._replace(pools=pools))
        placed = place(file, plan, NoGpu("the CPU alone"))
        cache = placed.disk_cache
        assert cache is not None
        engine = Engine(
            Decoder(placed.weights(file), config, placed.experts), frozenset(), plan.engine
        )
        params = SamplingParams(temperature=0.0, max_tokens=1)
        seconds, read, waited = [], [], []
        disk = [_sequential_rate(path)]
        for _ in range(1 + num_prompts):
            ids = rng.integers(0, config.vocab_size, num_tokens).tolist()
            before, started = cache.stats().counters, time.perf_counter()
            events: SimpleQueue[Any] = SimpleQueue()
            engine.submit(Request(prompt_ids=ids, params=params), events.put)
            while not isinstance(event := events.get(), Finished):
                pass
            assert event.reason in ("length", "stop"), event
            seconds.append(time.perf_counter() - started)
            after = cache.stats().counters
            read.append(after.bytes_read - before.bytes_read)
            waited.append(after.read_wait_s - before.read_wait_s)
            disk.append(_sequential_rate(path))
        engine.close()
        facts = cache.plan._asdict()
        placed.close()
    return {
        "step_tokens": plan.step_tokens,
        "seconds": seconds,
        "read_gb": [size / 1e9 for size in read],
        "wait_s": waited,
        "disk_gb_s": [rate / 1e9 for rate in disk],
        "cache": facts,
        "counters": str(after),
    }


def _sequential_rate(path: Path) -> float:
    """Bytes/s of direct reads in file order."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    places = iter(range(0, path.stat().st_size - PIECE_BYTES, PIECE_BYTES))
    lock, arena, done = threading.Lock(), Arena(DEPTH * PIECE_BYTES), [0] * DEPTH
    arena.bytes[::4096] = 1  # pages are there before the clock starts
    until = time.perf_counter() + DISK_S

    def read(worker: int) -> None:
        buffer = arena.view[worker * PIECE_BYTES : (worker + 1) * PIECE_BYTES]
        while time.perf_counter() < until:
            with lock:
                place = next(places, None)
            if place is None:
                return
            done[worker] += os.preadv(fd, [buffer], place)

    started = time.perf_counter()
    threads = [threading.Thread(target=read, args=(i,)) for i in range(DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return sum(done) / (time.perf_counter() - started)


def _rows(found: dict[str, Any], num_tokens: int) -> list[Row]:
    rows = []
    rates = [gb / s for gb, s in zip(found["read_gb"], found["seconds"], strict=True)]
    # Each beside the disk just before and after it: virtual disks drift.
    disk = found["disk_gb_s"]
    limits = [(a + b) / 2 for a, b in pairwise(disk)]
    shares = [rate / limit for rate, limit in zip(rates, limits, strict=True)]
    middle = 1 + int(np.argsort(shares[1:])[(len(shares) - 1) // 2])
    for i, (rate, limit) in enumerate(zip(rates, limits, strict=True)):
        rows.append(Row(f"prompt {i + 1}: read", rate, "GB/s", limit))
    rows.append(
        Row("median: read", rates[middle], "GB/s", limits[middle], bar=SHARE * limits[middle])
    )
    rows.append(Row("median: prompt", num_tokens / found["seconds"][middle], "tok/s"))
    return rows


if __name__ == "__main__":
    main()

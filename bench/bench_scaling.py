"""Parallel efficiency of prompts and decoding on more cores than this machine has.

    python bench/bench_scaling.py --keep slice.gguf    # five layers of Kimi K2's shapes, 3.5 GB
    python bench/bench_scaling.py model.gguf --threads 8,16,2x48 --prompts 256,1024
    python bench/bench_scaling.py --keep slice.gguf --jobs 16  # where the time of 16 threads goes
    python bench/bench_scaling.py --tiles                      # prompts on AMX, modelled; no model

A step is traced on one thread, divided as for so many: the CPU time of every chunk and of the
caller between the jobs. Simulated threads draw these chunks. `value` is, for prompts, the time of
one thread over that of all threads together (bar: 0.85 at 16), and in decoding the share of the
time that DRAM would need at the kernels' rate on one thread (bar: 0.9 at 16); notes have the time
and what is lost to serial parts, to starting and ending jobs, and to uneven shares. Where this
machine has the cores, the time that was measured stands beside the prediction.

With --tiles, the products of one layer go through the kernels' division for AMX, and each task
takes a modelled time (bench/_modelled_tiles.py).

What a trace cannot know: caches and clocks that cores share. `--lanes` says how many threads of a
node its DRAM feeds, `hybridmoe doctor` measures it: rate of all threads over that of one.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench._modelled_tiles import ModelledTiles, k2_layer
from bench._schedule import Machine, Step, least, trace
from bench.synthetic import K2_SLICE, write_synthetic
from hybridmoe import _C
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv

PROMPT_BAR, DECODE_BAR, BAR_THREADS = 0.85, 0.9, 16
DECODE_FROM = 256  # position of the token that is decoded


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--keep", type=click.Path(path_type=Path), help="The slice; written if missing.")
@click.option("--threads", "machines", default="2,8,16,32,64,2x48", show_default=True)
@click.option("--prompts", default="256,512", show_default=True, help="Tokens of prompts.")
@click.option("--lanes", type=float, default=9.7, show_default=True, help="See above.")
@click.option("--turns", type=int, default=3, show_default=True)
@click.option("--isa", "isa_name", type=click.Choice(isa.supported()), help="Kernels.")
@click.option("--jobs", type=int, help="Print the jobs of a step divided for so many threads.")
@click.option("--tiles", is_flag=True, help="Modelled AMX tiles instead of a model.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there, too.")
def main(
    model: Path | None,
    keep: Path | None,
    machines: str,
    prompts: str,
    lanes: float,
    turns: int,
    isa_name: str | None,
    jobs: int | None,
    tiles: bool,
    out: Path | None,
) -> None:
    """Print predicted and measured efficiencies."""
    sizes = [int(n) for n in prompts.split(",")]
    if tiles:
        print_report(list(_tile_rows(machines.split(","), sizes)), out=out)
        return
    with ExitStack() as stack:
        if isa_name:
            stack.enter_context(isa.forced(isa_name))
        stack.enter_context(_threads_restored())
        steps = _steps(stack, model or _slice(stack, keep), sizes)
        if jobs:
            for name, step in steps.items():
                print(f"{name}:")
                _print_jobs(_traced(step, Machine((jobs,)), turns), Machine((jobs,)))
            return
        rows = []
        for name, step in steps.items():
            is_prompt = name.startswith("prompt")
            one = _traced(step, Machine((1,)), turns)
            for text in machines.split(","):
                machine = _machine(text, float("inf") if is_prompt else lanes)
                rows.append(_row(f"{name}, {text} threads", one, step, machine, turns))
        print_report(rows, about={"lanes": lanes}, out=out)


def _row(name: str, one: Step, step: Callable[[], object], machine: Machine, turns: int) -> Row:
    found = _traced(step, machine, turns)
    predicted, n = found.seconds(machine), machine.num_threads
    whole = one.work_s + one.serial_s if machine.lanes == float("inf") else one.work_s
    share = min(n, machine.lanes * len(machine.threads))
    losses = {cause: f"{s / predicted:.1%}" for cause, s in found.losses(machine).items()}
    notes = [f"{1e3 * predicted:.2f} ms", ", ".join(f"{k} {v}" for k, v in losses.items())]
    if n <= (os.cpu_count() or 1) and len(machine.threads) == 1:
        ratio = one.seconds(Machine((1,))) / found.seconds(Machine((n,)))
        measured = f"measured {_measured(step, n, turns):.2f} times one thread's speed"
        notes.append(f"{measured}, predicted {ratio:.2f}")
    bar = None
    if machine.threads == (BAR_THREADS,):
        bar = PROMPT_BAR if machine.lanes == float("inf") else DECODE_BAR
    value = float(whole / share / predicted)
    return Row(name, value, "share", 1.0, bar=bar, note="; ".join(notes))


def _tile_rows(machines: list[str], prompts: list[int]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        tiles = ModelledTiles(Path(folder))
        for tokens in prompts:
            one = k2_layer(tiles, Machine((1,)), tokens)
            whole = sum(step.work_s for step in one.values())
            for text in machines:
                machine = _machine(text, float("inf"))
                steps = k2_layer(tiles, machine, tokens)
                seconds = {part: step.seconds(machine) for part, step in steps.items()}
                total, n = sum(seconds.values()), machine.num_threads
                shares = [f"{p} {one[p].work_s / n / s:.2f}" for p, s in seconds.items()]
                bar = PROMPT_BAR if machine.threads == (BAR_THREADS,) else None
                name = f"modelled AMX, prompt of {tokens}, {text} threads"
                note = f"{1e3 * total:.2f} ms; {', '.join(shares)}"
                yield Row(name, whole / n / total, "share", 1.0, bar=bar, note=note)


def _traced(step: Callable[[], object], machine: Machine, turns: int) -> Step:
    _C.set_threads(machine.plan)
    step()
    return least([trace(step) for _ in range(turns)])


def _measured(step: Callable[[], object], num_threads: int, turns: int) -> float:
    """Time of one thread over that of several, in turns."""
    ratios = []
    for _ in range(turns + 1):
        seconds = []
        for n in (1, num_threads):
            _C.set_threads(Machine((n,)).plan)
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return median(ratios[1:])


def _machine(text: str, lanes: float) -> Machine:
    nodes, _, threads = text.rpartition("x")
    return Machine((int(threads),) * int(nodes or 1), lanes)


def _print_jobs(step: Step, machine: Machine) -> None:
    print(f"{'before us':>10} {'chunks':>7} {'work ms':>9} {'longest':>8} {'taken':>8} {'even':>8}")
    for job in step.jobs:
        even = job.work_s / machine.num_threads
        print(
            f"{1e6 * job.before_s:10.1f} {len(job.seconds):7} {1e3 * job.work_s:9.3f} "
            f"{1e3 * max(job.seconds, default=0):8.3f} {1e3 * job.makespan(machine):8.3f} "
            f"{1e3 * even:8.3f}"
        )
    print(f"{1e6 * step.after_s:10.1f}")


def _slice(stack: ExitStack, keep: Path | None) -> Path:
    path = keep or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "slice.gguf"
    if not path.exists():
        shape = dataclasses.replace(K2_SLICE, num_experts=24)
        write_synthetic(path, shape, embedding_gain=300.0)  # tokens differ in their experts
    return path


def _steps(stack: ExitStack, path: Path, prompts: list[int]) -> dict[str, Callable[[], object]]:
    """Build steps that can be repeated: prompts, and the decoding of one token."""
    file = stack.enter_context(GGUFFile.open(path))
    config = ModelConfig.from_metadata(file.metadata)
    most = max(*prompts, DECODE_FROM + 1)
    cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=most, kv_tokens=most), 0))
    model, pages = Decoder(Weights(file), config), range(cache.plan.num_pages)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, most).tolist()

    def prompt(num_tokens: int) -> Callable[[], object]:
        def run() -> object:
            states = model.forward(ids[:num_tokens], [Span(num_tokens, 0, pages)], cache.layers)
            return model.logits(states[-1:])

        return run

    def decode() -> object:
        return model.decode(ids[:1], [Span(1, DECODE_FROM, pages)], cache.layers)

    return {f"prompt of {n}": prompt(n) for n in prompts} | {"decode": decode}


@contextmanager
def _threads_restored() -> Iterator[None]:
    before = _C.threads()
    try:
        yield
    finally:
        _C.set_threads(before)


if __name__ == "__main__":
    main()

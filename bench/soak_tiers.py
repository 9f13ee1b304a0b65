"""Experts over VRAM slots, RAM and a file for minutes, under faults of the disk and less memory.

    python bench/soak_tiers.py                         # 10 minutes
    python bench/soak_tiers.py --minutes 1 --keep soak.gguf

In a control group with less memory than the file has, a simulated card and the RAM tier run steps
of synthetic routing, in spells. Each spell opens the file anew in a split of its own, has a fault
of its own, and closes it. After every step, failed ones too, each expert must be in one place, no
buffer lost, VRAM's slots the file's bytes; and every layer's result must be that of the memory map,
bit for bit. A step that fails as its fault says is run again; where none fails, all counters must
be the simulator's. Memory, threads and open files must not grow from the first round of faults to
the last. Exits with 1 if anything is wrong.
"""

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import machine
from bench._memory_limit import memory_limit
from bench._tier_spells import FAULTS, run_spell
from bench.synthetic import Shape, write_synthetic

# 8 layers of 96 experts, 680 MB.
SHAPE = Shape(
    num_layers=9, num_dense_layers=1, hidden=1024, dense_inter=1024, num_heads=4, q_lora_rank=0,
    num_experts=96, top_k=6, expert_inter=512, num_shared_experts=1, routed_scale=2.5,
)  # fmt: skip
LIMIT_BYTES = 1 << 30  # Python and torch take half
SQUEEZED_BYTES = 64 << 20  # that are left to the page cache in spells with less memory
SPELL_TOKENS, SPELL_BYTES = 250, 320 << 20  # the most that a split takes
GROWTH_MIB, SPARE_THREADS = 32, 4


class Rest(NamedTuple):
    """The process between two rounds."""

    at_s: float
    anonymous_mib: float
    threads: int
    files: int


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option("--limit", "limit_file", type=click.Path(path_type=Path), hidden=True)
@click.option("--worker", is_flag=True, hidden=True)
def main(
    minutes: float, seed: int, keep: Path | None, limit_file: Path | None, worker: bool
) -> None:
    if worker:
        assert keep is not None
        _soak(keep, minutes, seed, limit_file)
        return
    with ExitStack() as stack:
        path = keep or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "soak.gguf"
        if not path.exists():
            write_synthetic(path, SHAPE)
        limit = stack.enter_context(memory_limit(LIMIT_BYTES))
        command = [sys.executable, __file__, "--worker", f"--keep={path}", f"--minutes={minutes}"]
        command += [f"--seed={seed}"]
        if limit is None:
            click.echo("no control group can be made: no limit of memory", err=True)
        else:
            command.append(f"--limit={limit.file}")
        enter = None if limit is None else limit.enter
        sys.exit(subprocess.run(command, preexec_fn=enter, check=False).returncode)


def _soak(path: Path, minutes: float, seed: int, limit_file: Path | None) -> None:
    """Run rounds of all faults until the time is over."""
    began, rests, total = time.perf_counter(), [], Counter[str]()
    wrong: list[str] = []
    while time.perf_counter() - began < 60 * minutes or len(rests) < 2:
        for fault in FAULTS:
            with _less_memory(limit_file if fault == "less memory" else None):
                try:
                    counts = run_spell(path, fault, seed, SPELL_TOKENS)
                except Exception as error:
                    wrong.append(f"seed {seed}, {fault}: {type(error).__name__}: {error}")
                    click.echo(wrong[-1])
                    counts = Counter[str]()
            click.echo(f"{time.perf_counter() - began:6.0f} s  {fault:16} {dict(counts)}")
            total.update(counts)
            seed += 1
            gc.collect()  # a spell's objects refer to each other
        rests.append(_at_rest(time.perf_counter() - began))
        click.echo(str(rests[-1]))
    first, last = rests[0], rests[-1]
    growth = last.anonymous_mib - first.anonymous_mib
    if growth > GROWTH_MIB:
        wrong.append(f"memory: {growth:.1f} MiB more than after the first round")
    if last.threads > first.threads + SPARE_THREADS:
        wrong.append(f"threads: {first.threads}, then {last.threads}")
    if last.files > first.files:
        wrong.append(f"open files: {first.files}, then {last.files}")
    for line in wrong:
        click.echo(f"WRONG: {line}")
    click.echo(
        json.dumps(
            {
                "machine": machine(),
                "minutes": round((time.perf_counter() - began) / 60, 1),
                "counts": dict(total),
                "rests": [rest._asdict() for rest in (first, last)],
                "wrong": wrong,
            }
        )
    )
    sys.exit(1 if wrong else 0)


@contextmanager
def _less_memory(limit_file: Path | None) -> Iterator[None]:
    """Leave the page cache next to nothing."""
    if limit_file is None:
        yield
        return
    before = limit_file.read_text()
    try:
        squeezed = int(_at_rest(0.0).anonymous_mib * 2**20) + SQUEEZED_BYTES + SPELL_BYTES
        limit_file.write_text(str(squeezed))
        yield
    finally:
        limit_file.write_text(before)


def _at_rest(at_s: float) -> Rest:
    status = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(RssAnon|Threads):\s+(\d+)", status, re.MULTILINE))
    files = len(os.listdir("/proc/self/fd"))
    return Rest(at_s, int(found["RssAnon"]) / 1024, int(found["Threads"]), files)


if __name__ == "__main__":
    main()

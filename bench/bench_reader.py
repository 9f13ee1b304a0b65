"""Read backends, four native threads beside io_uring: rate, and CPU time, on one file.

    python bench/bench_reader.py                    # writes a file of 4 GiB, and removes it
    python bench/bench_reader.py --file model.gguf --out

Ranges at random offsets through `FileReader`, past the page cache, with `depth` of them in flight.
Engines alternate in one run; a figure is the median of the rounds. CPU time is this process's,
including the kernel's threads for it.
"""

import mmap
import os
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, Row, machine, print_report
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import FileRange, ReadRequest
from hybridmoe.hardware.disk import direct_buffer_bytes

READ_BYTES = (
    20 << 20,
    8 << 20,
    512 << 10,
)  # a whole expert, a matrix of K2's in Q4_K, a small one
DEPTHS = (1, 4, 16)
BACKENDS = ("threads", "uring")
FILE_BYTES, SKEW = 4 << 30, 32  # GGUF aligns tensors to so many bytes


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--file", "path", type=click.Path(exists=True, path_type=Path))
@click.option("--turns", default=5, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="of each turn")
@click.option("--out", is_flag=False, flag_value="", help="write the JSON [default: results/]")
def main(path: Path | None, turns: int, seconds: float, out: str | None) -> None:
    with ExitStack() as stack:
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = _write(Path(folder) / "weights")
        rows = []
        for size in READ_BYTES:
            for depth in DEPTHS:
                rows += _compare(path, size, depth, turns, seconds)
    target = Path(out) if out else RESULTS / f"{machine()['date']}_reader.json"
    print_report(rows, about={"turns": turns}, out=None if out is None else target)


def _write(path: Path) -> Path:
    chunk = np.random.default_rng(0).bytes(64 << 20)
    with open(path, "wb") as file:
        for _ in range(FILE_BYTES // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return path


def _compare(path: Path, size: int, depth: int, turns: int, seconds: float) -> list[Row]:
    """Print rate and CPU time of the ring beside the threads'."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in BACKENDS}
    for turn in range(turns):
        for name in BACKENDS if turn % 2 == 0 else BACKENDS[::-1]:
            found[name].append(_turn(path, name, size, depth, seconds, seed=turn))
    rate, cost = (
        {name: float(np.median([pair[i] for pair in found[name]])) for name in BACKENDS}
        for i in (0, 1)
    )
    title = f"{size >> 10} KiB, {depth} asked for"
    return [
        Row(f"{title}: rate", rate["uring"], "GB/s", peer=rate["threads"]),
        Row(f"{title}: cores", 1e3 * cost["uring"], "ms/GB", peer=1e3 * cost["threads"]),
    ]


def _turn(
    path: Path, backend: str, size: int, depth: int, seconds: float, *, seed: int
) -> tuple[float, float]:
    """Return GB/s, and CPU seconds per GB."""
    os.environ["HYBRIDMOE_IO"] = backend
    reader = FileReader([path])
    capacity, rng = direct_buffer_bytes(size), np.random.default_rng(seed)
    arena = Arena(depth * capacity)
    arena.bytes[:: mmap.PAGESIZE] = 1  # pages are there before the clock starts
    num_places = (path.stat().st_size - SKEW) // size

    def submit(slot: int) -> None:
        part = FileRange(0, int(rng.integers(num_places)) * size + SKEW, size, "x")
        buffer = arena.view[slot * capacity : (slot + 1) * capacity]
        reader.submit(ReadRequest(slot, [part], [buffer]))

    started, cpu = time.perf_counter(), _cpu_s()
    done = num_asked = 0
    for slot in range(depth):
        submit(slot)
        num_asked += 1
    while num_asked:
        request = reader.take_completed(wait=True)
        assert request is not None and request.error is None, request
        done += size
        if time.perf_counter() - started < seconds:
            submit(request.key)
        else:
            num_asked -= 1
    taken, cpu = time.perf_counter() - started, _cpu_s() - cpu
    reader.close()
    return done / taken / 1e9, cpu / (done / 1e9)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

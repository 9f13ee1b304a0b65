"""Prompts whose experts are streamed to a GPU: how busy the link is, beside the tokens/s.

    python bench/bench_hybrid.py --layers 4 --experts 48 --keep slice.gguf --only prompts
    python bench/bench_streaming.py slice.gguf

From registered memory, then staged by threads; with few VRAM slots, so that nearly all experts
cross the link in every step. Needs a CUDA GPU, and exits with 1 without one.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench._hybrid_parts import vram_bytes
from bench._hybrid_run import intervals_of, opened, prefill
from bench._timeline import Interval
from hybridmoe.errors import DeviceError
from hybridmoe.experts.gpu.host_registration import CudaRegistrar

LINK_SHARE, FIRST_SHARE = 0.7, 0.8  # the bars: of the link's rate, of the later prompts
_TIMES = 3  # timed prompts of each length


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--slots", type=int, default=1, show_default=True, help="VRAM expert slots.")
@click.option(
    "--prompt",
    "prompts",
    type=click.IntRange(min=17),
    multiple=True,
    default=(2048, 512, 8000),
    show_default=True,
    help="Tokens of a prompt; may be repeated. The first is timed right after loading, too.",
)
@click.option(
    "--way",
    "ways",
    type=click.Choice(["registered", "staged"]),
    multiple=True,
    default=("registered", "staged"),
    show_default=True,
    help="How experts cross the link; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File for the JSON.")
def main(
    path: Path, slots: int, prompts: tuple[int, ...], ways: tuple[str, ...], out: Path | None
) -> None:
    if not torch.cuda.is_available():
        raise click.ClickException(
            "torch sees no CUDA GPU here. With one, tokens/s and the link's share of prompts of"
            f" {', '.join(map(str, prompts))} tokens would be measured"
        )
    context = max(prompts) + 64
    options = {"device": "cuda", "vram": vram_bytes(path, context, slots)}
    rows: list[Row] = []
    for way in ways:
        with nullcontext() if way == "registered" else refused_registration():
            rows += measure(way, path, context, options, prompts)
    print_report(rows, out=out)


def measure(
    name: str, path: Path, context: int, options: dict[str, Any], prompts: Sequence[int]
) -> list[Row]:
    """Load the model and time its prompts."""
    rows = []
    with opened(path, context, **options) as llm:
        experts = llm.experts.prefill
        link = experts.link_rate
        first: float | None = prefill(llm, prompts[0])
        for n in prompts:
            before = experts.tally.streamed_bytes
            speeds = [prefill(llm, n) for _ in range(_TIMES)]
            seconds = sum(n / speed for speed in speeds)
            rate = (experts.tally.streamed_bytes - before) / seconds
            splits = experts.tally.splits.values()
            note = (
                f"{experts.registered_bytes / 1e9:.2f} GB registered; of a step's experts"
                f" {sum(len(s.gpu) for s in splits)} GPU, {sum(len(s.cpu) for s in splits)} CPU,"
                f" {1e3 * sum(s.seconds for s in splits):.0f} ms predicted"
            )
            speed = median(speeds)
            rows.append(Row(f"{name}, prompt of {n}", speed, "tok/s", note=note))
            if first is not None:
                least = FIRST_SHARE * speed
                rows.append(Row("  the first after loading", first, "tok/s", bar=least))
                first = None
            bar = LINK_SHARE * link / 1e9 if name == "registered" else None
            rows.append(Row("  experts over the link", rate / 1e9, "GB/s", link / 1e9, bar=bar))
            link_busy, gpu_busy = busy_shares(llm, n)
            rows.append(Row("  link busy", link_busy, "of 1", 1.0))
            rows.append(Row("  kernels busy", gpu_busy, "of 1", 1.0))
    return rows


def busy_shares(llm: Any, num_tokens: int) -> tuple[float, float]:
    """Profile one prompt: shares of its time in which copies to the GPU, and kernels, run."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        prefill(llm, num_tokens)
    found = intervals_of(profiled, DeviceType.CUDA)
    if not found:
        return 0.0, 0.0
    span = max(i.end for _, i in found) - min(i.begin for _, i in found)
    copies = [i for name, i in found if "HtoD" in name]
    kernels = [i for name, i in found if not name.startswith("Mem")]
    return length(copies) / span, length(kernels) / span


def length(intervals: Sequence[Interval]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for interval in sorted(intervals, key=lambda i: i.begin):
        total += max(0.0, interval.end - max(interval.begin, end))
        end = max(end, interval.end)
    return total


@contextmanager
def refused_registration() -> Iterator[None]:
    """Let the driver refuse to register host memory."""

    def refuse(*args: object) -> None:
        raise DeviceError("refused")

    before = CudaRegistrar.register
    CudaRegistrar.register = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        CudaRegistrar.register = before  # type: ignore[method-assign]


if __name__ == "__main__":
    main()

"""Decode and prefill on one CUDA GPU and the CPU together, with a timeline of both.

    python bench/bench_hybrid.py --keep k2.gguf               # as many layers as fit, 384 experts
    python bench/bench_hybrid.py --layers 3 --experts 48 --prompt 512

Kimi K2's layer shapes with random weights. Needs a CUDA GPU, and exits with 1 without one.
"""

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, Row, bar, machine, print_report
from bench._hybrid_run import (
    decode,
    fitting_layers,
    opened,
    plan_for,
    prefill,
    profiled_decode,
    without_gpu,
)
from bench.synthetic import K2_SLICE, Shape, write_synthetic
from hybridmoe.experts.gpu.calibrate import with_cpu
from hybridmoe.planning.cost_model import Hits
from hybridmoe.planning.cost_model import decode as predict
from hybridmoe.planning.memory_plan import Plan
from hybridmoe.planning.rates import GpuRates, Rates

# The bars.
OVERLAP, INSIDE, GEMV_SHARE = 0.9, 0.95, 0.8
EMBEDDING_GAIN = 3000.0  # about half of a token's experts are those of the token before
SLOT_SHARES = (0.05, 0.1, 0.25, 0.5)  # of all experts: caches of several hit rates
UPLOADS = 8  # experts that a cache admits in a step
GEMVS = (  # type, rows, columns: feed-forward, attention and shared expert of Kimi K2
    ("Q8_0", 18432, 7168), ("Q8_0", 7168, 8192), ("Q8_0", 2048, 7168), ("Q4_K", 18432, 7168),
    ("Q6_K", 7168, 18432), ("BF16", 7168, 8192),
)  # fmt: skip


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--layers", type=int, help="MoE layers [default: as many as fit].")
@click.option("--experts", type=int, default=384, show_default=True, help="Experts per layer.")
@click.option(
    "--expert-type", default="Q4_K", show_default=True, help="Tensor type of the experts."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option(
    "--decode", "num_decode", type=int, default=64, show_default=True, help="Tokens to decode."
)
@click.option(
    "--prompt",
    "prompts",
    type=int,
    multiple=True,
    default=(512, 2048, 8192, 32768),
    help="Tokens of a prompt; may be repeated.",
)
@click.option(
    "--defer", type=int, default=2, show_default=True, help="Deferred experts, in the last rows."
)
@click.option(
    "--out", is_flag=False, flag_value="", help="Write the JSON, into results/ or to this path."
)
def main(
    layers: int | None,
    experts: int,
    expert_type: str,
    keep: Path | None,
    num_decode: int,
    prompts: tuple[int, ...],
    defer: int,
    out: str | None,
) -> None:
    if not torch.cuda.is_available():
        raise without_gpu()
    from bench._gpu import copy_rate, describe_gpu, gemv_rate, link_rate  # needs triton

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = keep or folder / "k2.gguf"
        kind = GGMLQuantizationType[expert_type]
        if not path.exists():
            write_synthetic(
                path,
                sized(layers, experts, kind, path.parent),
                expert_type=kind,
                embedding_gain=EMBEDDING_GAIN,
            )
        copied, link = copy_rate() / 1e9, link_rate() / 1e9
        rows = [Row("copy within the GPU", copied, "GB/s"), Row("link", link, "GB/s")]
        for name, num_rows, cols in GEMVS:
            found = gemv_rate(GGMLQuantizationType[name], num_rows, cols) / 1e9
            least = bar(limit=copied, share=GEMV_SHARE)
            rows.append(
                Row(f"one token {name} {num_rows}x{cols}", found, "GB/s", copied, None, least)
            )
        about: dict[str, Any] = describe_gpu() | {"file": f"{experts} experts {expert_type}"}
        rows += decode_rows(
            path, num_decode, defer, with_cpu(GpuRates.assumed(copied, 100.0, link)), about
        )
        rows += prompt_rows(path, prompts)
    target = Path(out) if out else RESULTS / f"{machine()['date']}_hybrid.json"
    print_report(rows, about=about, out=None if out is None else target)


def sized(layers: int | None, experts: int, kind: GGMLQuantizationType, folder: Path) -> Shape:
    """Kimi K2's layers, the first of them dense, with room for the longest prompt."""
    shape = replace(K2_SLICE, num_experts=experts, context_tokens=1 << 17)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    expert_bytes = 3 * shape.hidden * shape.expert_inter // block * block_bytes
    if layers is None:
        layers = min(60, fitting_layers(shape, expert_bytes, folder))
    if layers < 2:
        raise click.ClickException(
            f"{layers} layers of {experts * expert_bytes / 1e9:.1f} GB fit into memory and onto"
            " the disk, expected 2: give --experts"
        )
    return replace(shape, num_layers=shape.num_dense_layers + layers)


def decode_rows(
    path: Path, num_decode: int, defer: int, rates: Rates, about: dict[str, Any]
) -> list[Row]:
    """Decode on the CPU alone, with a GPU, with VRAM slots, with deferral; a timeline of each."""
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    rows: list[Row] = []
    about["timelines"] = {}
    most = most_slots(path, num_decode, gpu_bytes)
    plan = plan_for(path, 4096, gpu_bytes)
    slots = [0, *sorted({min(most, int(share * plan.num_experts)) for share in SLOT_SHARES} - {0})]
    ways = [("CPU only", None, 0), *((f"{n} slots", n, 0) for n in slots)]
    ways += [(f"{n} slots, {defer} deferred", n, defer) for n in (slots[0], slots[-1])]
    for name, num_slots, deferred in ways:
        warm_up = 16 + 2 * (num_slots or 0) // UPLOADS
        context = 2 * (warm_up + num_decode + 64)
        options: dict[str, Any] = {"device": "cpu"}
        if num_slots is not None:
            vram = vram_bytes(plan_for(path, context, gpu_bytes), num_slots)
            options = {"device": "cuda", "vram": vram, "defer": deferred}
        with opened(path, context, **options) as llm:
            found = decode(llm, warm_up, num_decode)
            note = "no cache"
            if found.hit_rate is not None:
                note = f"{found.num_slots} slots, hit rate {found.hit_rate:.2f}"
            if num_slots is not None:
                shares = profiled_decode(llm, 4)
                about["timelines"][name] = {
                    "overlap": round(shares.overlap, 4),
                    "gpu_idle": round(shares.gpu_idle, 4),
                    "cpu_idle": round(shares.cpu_idle, 4),
                    "outside_kernels": round(shares.outside, 4),
                    "hit_rate": found.hit_rate,
                }
                if (num_slots, deferred) == (0, 0):
                    about["overlap"] = round(shares.overlap, 4)
                    rows.append(Row("overlap", shares.overlap, "of 1", 1.0, bar=OVERLAP))
                    rows.append(Row("inside kernels", shares.inside, "of 1", 1.0, bar=INSIDE))
            hits = Hits(found.hit_rate or 0.0, 1 - (found.hit_rate or 0.0))
            gpu_plan = plan_for(path, context, gpu_bytes if num_slots is not None else 0)
            predicted = predict(gpu_plan, rates, hits, context // 2).tokens_per_s
            note += f"; predicted {predicted:.1f}"
            rows.append(Row(f"decode, {name}", found.tokens_per_s, "tok/s", note=note))
    return rows


def prompt_rows(path: Path, prompts: tuple[int, ...]) -> list[Row]:
    """Prefill with the GPU by its default options, beside the CPU alone."""
    context = max(prompts) + 64
    speeds: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        with opened(path, context, device=device) as llm:
            prefill(llm, 64)
            speeds[device] = [prefill(llm, num_tokens) for num_tokens in prompts]
    return [
        Row(f"prompt of {n}", with_gpu, "tok/s", note=f"CPU only {alone:.1f}")
        for n, with_gpu, alone in zip(prompts, speeds["cuda"], speeds["cpu"], strict=True)
    ]


def most_slots(path: Path, num_decode: int, gpu_bytes: int) -> int:
    """VRAM slots that fit beside all else, with the longest context of these runs."""
    plan = plan_for(path, 4096 + num_decode, int(0.95 * gpu_bytes))
    return plan.num_vram_slots


def vram_bytes(plan: Plan, num_slots: int) -> int:
    """VRAM budget that the planner turns into `num_slots` slots."""
    assert plan.vram is not None
    return plan.vram.used_bytes - plan.vram.expert_bytes + num_slots * plan.problem.sizes.slot_bytes


if __name__ == "__main__":
    main()

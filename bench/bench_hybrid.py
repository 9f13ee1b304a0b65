"""Decode and prefill on one CUDA GPU and the CPU together, beside another program.

    python bench/bench_hybrid.py --keep k2.gguf               # as many layers as fit, 384 experts
    python bench/bench_hybrid.py --layers 4 --experts 48 --peer ./llama_peer --out
    python bench/bench_hybrid.py --keep k2.gguf --only gemv --only decode --out h100.json

Kimi K2's layer shapes with random weights. Needs a CUDA GPU: without one it says what it would
measure, and exits with 1. `--out` keeps the parts that its file has of the same GPU, model and
commit, so that parts can be measured one by one.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, machine, print_report
from bench._hybrid_parts import default_slots, measure_decode, measure_gemv, measure_prompts
from bench._hybrid_run import fitting_layers
from bench._hybrid_table import PARTS, table_of
from bench._layers_fit import measure_layers, parse_counts
from bench._peer import measure_peer, parse_command
from bench.synthetic import K2_SLICE, Shape, write_synthetic
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.quant_types import QuantType, tensor_bytes
from hybridmoe.kernels import ops

EMBEDDING_GAIN = 3000.0  # about half of a token's experts are those of the token before
_SAME = ("cpu", "commit", "gpu", "torch", "file")  # of runs whose parts make one table


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--layers", type=int, help="MoE layers [default: as many as fit].")
@click.option("--experts", type=int, default=384, show_default=True, help="Experts per layer.")
@click.option(
    "--expert-type", default="Q4_K", show_default=True, help="Tensor type of the experts."
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Keep the synthetic file at this path; a file that is there is measured as it is.",
)
@click.option(
    "--only",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Measure this part; may be repeated [default: all].",
)
@click.option(
    "--peer", metavar="COMMAND", help="Program to run on the same file, with its first arguments."
)
@click.option(
    "--decode", "num_decode", type=int, default=64, show_default=True, help="Tokens to decode."
)
@click.option(
    "--slots",
    type=click.IntRange(min=0),
    multiple=True,
    help="VRAM expert slots; may be repeated [default: none, and some shares of the experts].",
)
@click.option(
    "--prompt",
    "prompts",
    type=click.IntRange(min=1),
    multiple=True,
    default=(512, 2048, 8192),
    show_default=True,
    help="Tokens of a prompt; may be repeated.",
)
@click.option(
    "--fit-layers",
    metavar="COUNTS",
    help="Also decode with these numbers of MoE layers, such as 2,4,8,16, and fit a line.",
)
@click.option(
    "--out", is_flag=False, flag_value="", help="Write the JSON, into results/ or to this path."
)
def main(
    layers: int | None,
    experts: int,
    expert_type: str,
    keep: Path | None,
    only: tuple[str, ...],
    peer: str | None,
    num_decode: int,
    slots: tuple[int, ...],
    prompts: tuple[int, ...],
    fit_layers: str | None,
    out: str | None,
) -> None:
    command = None if peer is None else parse_command(peer)
    if "peer" in only and command is None:
        raise click.ClickException("--only peer: expected --peer COMMAND")
    counts = () if fit_layers is None else parse_counts(fit_layers)
    if "layers" in only and not counts:
        raise click.ClickException("--only layers: expected --fit-layers COUNTS")
    left_out = {"peer": command is None, "layers": not counts}
    names = only or tuple(name for name in PARTS if not left_out.get(name))
    kind = QuantType[expert_type]
    if not torch.cuda.is_available():
        raise without_gpu(only or tuple(PARTS))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = keep or folder / "k2.gguf"
        if not path.exists():
            shape = sized(layers, experts, kind, path.parent)
            write_synthetic(path, shape, expert_type=kind, embedding_gain=EMBEDDING_GAIN)
        measures: Mapping[str, Callable[[], Any]] = {
            "gemv": measure_gemv,
            "decode": lambda: measure_decode(
                path, num_decode, slots or default_slots(path, num_decode)
            ),
            "prompts": lambda: measure_prompts(path, prompts),
            "layers": lambda: measure_layers(counts, kind, num_decode),
            "peer": lambda: measure_peer(
                command or (), path, num_threads=ops.num_threads(), prompts=prompts,
                num_decode=num_decode,
            ),
        }  # fmt: skip
        measure(names, measures, described(path), out)


def without_gpu(names: tuple[str, ...]) -> click.ClickException:
    """One line for each part: what would be measured with a GPU."""
    lines = [f"  {name:8} {PARTS[name]}" for name in dict.fromkeys(names)]
    return click.ClickException(
        "torch sees no CUDA GPU here. With one, this would be measured:\n" + "\n".join(lines)
    )


def measure(
    names: tuple[str, ...],
    measures: Mapping[str, Callable[[], Any]],
    about: dict[str, Any],
    out: str | None,
) -> None:
    """Measure parts, print the table of all, and write it after each part.

    out: path; "" = a file in results/ named after date and GPU; None = none.
    """
    known = machine() | about
    target = None
    if out is not None:
        target = Path(out) if out else RESULTS / result_name(known)
    parts = {} if target is None else earlier_parts(target, known)
    for name in dict.fromkeys(names):
        click.echo(f"measuring: {name}", err=True)
        parts[name] = measures[name]()
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps({"machine": known | {"parts": parts}, "rows": []}) + "\n")
    print_report(table_of(parts), about=about | {"parts": parts}, out=target)


def earlier_parts(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parts that a file has of the same GPU, model and commit; else none."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["machine"]
        parts = dict(earlier["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return parts if all(earlier.get(key) == known.get(key) for key in _SAME) else {}


def result_name(known: Mapping[str, Any]) -> str:
    """Name a file of results after date and GPU, such as `2026-11-27_hybrid_h100-80gb.json`."""
    gpu = re.sub(r"[^a-z0-9]+", "-", str(known["gpu"]).split(",")[0].lower()).strip("-")
    return f"{known['date']}_hybrid_{gpu.removeprefix('nvidia-')}.json"


def described(path: Path) -> dict[str, Any]:
    """Describe the GPU, and the model by its headers."""
    from bench._gpu import describe_gpu  # needs triton

    outline = read_outline(path)
    c = outline.config
    types = {t.type.name for t in outline.tensors if "_exps" in t.name}
    size = sum(t.num_bytes for t in outline.tensors)
    model = f"{c.num_moe_layers} MoE layers of {c.num_experts} experts"
    return describe_gpu() | {"file": f"{model}, {'/'.join(sorted(types))}, {size / 1e9:.2f} GB"}


def sized(layers: int | None, experts: int, kind: QuantType, folder: Path) -> Shape:
    """Kimi K2's layers, the first of them dense, with room for the longest prompt."""
    shape = replace(K2_SLICE, num_experts=experts, context_tokens=1 << 17)
    inner, outer = (shape.expert_inter, shape.hidden), (shape.hidden, shape.expert_inter)
    expert_bytes = 2 * tensor_bytes(kind, inner) + tensor_bytes(kind, outer)
    if layers is None:
        layers = min(60, fitting_layers(shape, expert_bytes, folder))
    if layers < 2:
        raise click.ClickException(
            f"{layers} layers of {experts * expert_bytes / 1e9:.1f} GB fit into memory and onto"
            " the disk, expected 2: give --experts"
        )
    return replace(shape, num_layers=shape.num_dense_layers + layers)


if __name__ == "__main__":
    main()

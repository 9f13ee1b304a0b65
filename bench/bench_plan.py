"""Predictions of `hybridmoe plan` beside measurements, on synthetic files or the embedded model.

    python bench/bench_plan.py                              # 3 layers of Kimi K2's shapes, 2.5 GB
    python bench/bench_plan.py --shape k2-slice --layers 5 --experts 48
    python bench/bench_plan.py --shape moonlight --layers 8 --expert-type Q8_0
    python bench/bench_plan.py --embedded                   # no promise: see docs/plan.md

The machine's limits are measured before and after each turn, since a machine that is used by
others has other limits a minute later; the prediction of a turn goes by the mean of both. How many
experts a step of the prompt chooses is counted first.
"""

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, Row, machine, print_report
from bench._predicted import Speed, between, plan_of, predict
from bench.bench_generate import SHAPES, WARM_UP_TOKENS, changed, hybridmoe_engine
from bench.synthetic import write_synthetic
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware.limits import measure
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv

ACCURACY = 0.75  # an error of at most a quarter
DEFAULT_SLICE = (3, 32)


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt and its response: tokens/s."""

    measured: Speed
    predicted: Speed
    read_gbs: float  # memory's rate, then


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shape", type=click.Choice(list(SHAPES)), default="k2-slice", show_default=True)
@click.option("--layers", type=int, help="Layers of the synthetic model.")
@click.option("--experts", type=int, help="Experts per layer of the synthetic model.")
@click.option("--expert-type", default="Q4_K", show_default=True)
@click.option("--embedded", is_flag=True, help="Measure the embedded model instead.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option("--prompt", "prompts", type=int, multiple=True, default=(64, 512, 1024))
@click.option("--decode", "num_decode", type=int, default=16, show_default=True)
@click.option("--turns", type=int, default=3, show_default=True)
@click.option(
    "--out", is_flag=False, flag_value="", help="Write the JSON, into results/ or to this path."
)
def main(
    shape: str,
    layers: int | None,
    experts: int | None,
    expert_type: str,
    embedded: bool,
    keep: Path | None,
    prompts: tuple[int, ...],
    num_decode: int,
    turns: int,
    out: str | None,
) -> None:
    with ExitStack() as stack:
        name, path = "embedded", demo_path()
        if not embedded:
            if shape == "k2-slice" and layers is None and experts is None:
                layers, experts = DEFAULT_SLICE
            sizes = changed(SHAPES[shape], layers, experts)
            name = f"{shape} {sizes.num_layers}x{sizes.num_experts} {expert_type}"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = keep or folder / "model.gguf"
            if not path.exists():
                write_synthetic(path, sizes, expert_type=QuantType[expert_type])
        plan = plan_of(path, max(prompts) + num_decode)
        chosen = distinct_experts(path, prompts)
        engine = stack.enter_context(hybridmoe_engine(path))
        engine(list(range(WARM_UP_TOKENS)), 2)
        rows, about = [], {}
        for num_prompt in prompts:
            ids = prompt_ids(num_prompt)
            found = []
            before = measure(quick=True)
            for _ in range(turns):
                measured = engine(ids, num_decode)
                after = measure(quick=True)
                predicted = predict(
                    plan, between(before, after), num_prompt, num_decode, chosen[num_prompt]
                )
                found.append(Turn(measured, predicted, between(before, after).dram / 1e9))
                before = after
            for what in ("prompt", "decode"):
                pairs = [(getattr(t.predicted, what), getattr(t.measured, what)) for t in found]
                row = (
                    f"{name} {what} of {num_prompt}"
                    if what == "prompt"
                    else (f"{name} decode after {num_prompt}")
                )
                rows.append(compare(row, pairs, has_bar=not embedded))
                about[row] = [[round(number, 2) for number in pair] for pair in pairs]
            about[f"{name} DRAM at {num_prompt}"] = [round(t.read_gbs, 1) for t in found]
        target = Path(out) if out else RESULTS / f"{machine()['date']}_plan.json"
        print_report(rows, about={"turns": about}, out=None if out is None else target)


def distinct_experts(path: Path, prompts: tuple[int, ...]) -> dict[int, float]:
    """Mean number of a layer's experts that a step of each prompt chooses.

    Random weights route unevenly: what uniform routing would choose is more, and slower.
    """
    found = {}
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        model = Decoder(Weights(file), config)
        for num_prompt in prompts:
            engine = EngineConfig(context_tokens=num_prompt, max_running=1)
            kv = KvCache(config, plan_kv(config, engine, 0))
            table = kv.acquire_prefix([])
            assert kv.grow(table, num_prompt)
            ids, counts = prompt_ids(num_prompt), []
            for start in range(0, num_prompt, engine.chunk_tokens):
                step = ids[start : start + engine.chunk_tokens]
                trace: list[Routing] = []
                model.forward(step, [Span(len(step), start, table.pages)], kv.layers, trace)
                counts += [len(chosen.unique()) for chosen, _ in trace]
            found[num_prompt] = float(np.mean(counts))
    return found


def prompt_ids(num_prompt: int) -> list[int]:
    ids: list[int] = np.random.default_rng(num_prompt).integers(0, 256, num_prompt).tolist()
    return ids


def compare(name: str, pairs: list[tuple[float, float]], *, has_bar: bool) -> Row:
    """The accuracy of the median turn, 1 - |predicted / measured - 1|."""
    ratio = median(predicted / measured for predicted, measured in pairs)
    predicted, measured = (median(column) for column in zip(*pairs, strict=True))
    note = f"predicted {predicted:.1f}, measured {measured:.1f} tok/s"
    return Row(name, 1 - abs(ratio - 1), "of 1", None, None, ACCURACY if has_bar else None, note)


if __name__ == "__main__":
    main()

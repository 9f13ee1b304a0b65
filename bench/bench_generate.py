"""Prompt and decode speed of a GGUF, beside llama.cpp on the same file and threads, in one run.

    python bench/bench_generate.py                          # the embedded model
    python bench/bench_generate.py model.gguf --prompt 512 --decode 64
    python bench/bench_generate.py --synthetic k2-slice     # Kimi K2's layer shapes, 6 GB
    python bench/bench_generate.py --synthetic moonlight --experts 16 --layers 4

Both run greedily from the same random token ids and take turns, so that a noisy machine hurts
both alike; figures are medians over the turns, and the claim is their ratio. llama.cpp runs with
`use_extra_bufts` off (with it on, 0.3.36 aborts on AMX machines) and its default attention.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import click
import numpy as np
from gguf import GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench._llama_cpp import LlamaCpp
from bench.synthetic import K2_SLICE, MOONLIGHT, Shape, write_synthetic
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine import Engine as OurEngine
from hybridmoe.engine import Event, Finished, Request, SamplingParams
from hybridmoe.gguf.accounting import take_account
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import ops
from hybridmoe.model.decoder import Decoder

SHAPES = {"k2-slice": K2_SLICE, "moonlight": MOONLIGHT}


@dataclass(frozen=True, slots=True)
class Speed:
    """One turn of one engine: tokens/s."""

    prompt: float
    decode: float


Engine = Callable[[list[int], int], Speed]


@contextmanager
def hybridmoe_engine(path: Path) -> Iterator[Engine]:
    """Ours, through the engine that chat uses; each turn in a fresh one, with nothing cached."""
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        model = Decoder(file, config)

        def run(ids: list[int], num_decode: int) -> Speed:
            params = SamplingParams(temperature=0.0, max_tokens=num_decode, ignore_eos=True)
            config = EngineConfig(context_tokens=len(ids) + num_decode, max_running=1)
            engine = OurEngine(model, frozenset(), config)
            events: SimpleQueue[Event] = SimpleQueue()
            engine.submit(Request(prompt_ids=ids, params=params), events.put)
            while not isinstance(event := events.get(), Finished):
                pass
            engine.close()
            usage = event.usage
            return Speed(len(ids) / usage.prompt_s, (num_decode - 1) / usage.decode_s)

        yield run


@contextmanager
def llama_cpp_engine(path: Path, context_tokens: int, num_threads: int) -> Iterator[Engine]:
    """The peer: the same greedy loop over its C API."""
    with GGUFFile.open(path) as file:
        yarn = ModelConfig.from_metadata(file.metadata).yarn
    betas = (yarn.beta_fast, yarn.beta_slow) if yarn else None
    with LlamaCpp(
        path, context_tokens=context_tokens, num_threads=num_threads, yarn_betas=betas
    ) as peer:

        def run(ids: list[int], num_decode: int) -> Speed:
            peer.reset()
            started = time.perf_counter()
            logits = peer.step(ids)
            prefilled = time.perf_counter()
            for _ in range(num_decode - 1):
                logits = peer.step([int(logits.argmax())])
            ended = time.perf_counter()
            return Speed(len(ids) / (prefilled - started), (num_decode - 1) / (ended - prefilled))

        yield run


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--synthetic", type=click.Choice(list(SHAPES)), help="a random model of this shape")
@click.option("--layers", type=int, help="of the synthetic model")
@click.option("--experts", type=int, help="of the synthetic model")
@click.option("--expert-type", default="Q4_K", show_default=True, help="of the synthetic model")
@click.option("--keep", type=click.Path(path_type=Path), help="write the synthetic file here")
@click.option("--prompt", "prompts", type=int, multiple=True, default=(32, 256), show_default=True)
@click.option("--decode", "num_decode", type=int, default=32, show_default=True)
@click.option("--threads", type=int, help="default: physical cores")
@click.option("--turns", type=int, default=3, show_default=True)
@click.option("--peer/--no-peer", default=True, show_default=True, help="run llama.cpp too")
def main(
    model: Path | None,
    synthetic: str | None,
    layers: int | None,
    experts: int | None,
    expert_type: str,
    keep: Path | None,
    prompts: tuple[int, ...],
    num_decode: int,
    threads: int | None,
    turns: int,
    peer: bool,
) -> None:
    if threads is not None:
        ops.set_num_threads(threads)
    with ExitStack() as stack:
        path = model or demo_path()
        if synthetic:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = keep or Path(folder) / f"{synthetic}.gguf"
            if not path.exists():
                shape = changed(SHAPES[synthetic], layers, experts)
                write_synthetic(path, shape, expert_type=GGMLQuantizationType[expert_type])
        context_tokens = max(prompts) + num_decode
        engines = {"ours": stack.enter_context(hybridmoe_engine(path))}
        if peer:
            llama_cpp = llama_cpp_engine(path, context_tokens, ops.num_threads())
            engines["peer"] = stack.enter_context(llama_cpp)
        with GGUFFile.open(path) as file:
            vocab_size = ModelConfig.from_metadata(file.metadata).vocab_size
            account = take_account(file.tensors.values(), file.metadata)
        print(f"{path.name}: {account.total.token_bytes / 1e9:.3f} GB read per token")
        rows = [
            row
            for num_prompt in prompts
            for row in _measure(engines, num_prompt, num_decode, vocab_size, turns)
        ]
        print_report(rows)


def _measure(
    engines: dict[str, Engine], num_prompt: int, num_decode: int, vocab_size: int, turns: int
) -> list[Row]:
    ids = np.random.default_rng(num_prompt).integers(0, min(256, vocab_size), num_prompt).tolist()
    speeds: dict[str, list[Speed]] = {name: [] for name in engines}
    for turn in range(turns + 1):
        for name, engine in engines.items():
            speed = engine(ids, num_decode)
            if turn:  # the first turn warms up: page faults, threads, allocators
                speeds[name].append(speed)
    ours = {kind: median(getattr(s, kind) for s in speeds["ours"]) for kind in ("prompt", "decode")}
    theirs = {
        kind: median(getattr(s, kind) for s in speeds["peer"]) if "peer" in speeds else None
        for kind in ours
    }
    return [
        Row(f"prompt of {num_prompt}", ours["prompt"], "tok/s", peer=theirs["prompt"]),
        Row(f"decode after {num_prompt}", ours["decode"], "tok/s", peer=theirs["decode"]),
    ]


def changed(shape: Shape, layers: int | None, experts: int | None) -> Shape:
    """The shape with as many layers and experts as were asked for."""
    return replace(
        shape, num_layers=layers or shape.num_layers, num_experts=experts or shape.num_experts
    )


if __name__ == "__main__":
    main()

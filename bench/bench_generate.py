"""Prompt and decode speed of a GGUF, beside llama.cpp on the same file and threads, in one run.

    python bench/bench_generate.py                          # the embedded model
    python bench/bench_generate.py model.gguf --prompt 512 --decode 64
    python bench/bench_generate.py --synthetic k2-slice     # Kimi K2's layer shapes, 6 GB
    python bench/bench_generate.py --synthetic moonlight --experts 16 --layers 4
    python bench/bench_generate.py demo-mtp.gguf --text prompt.txt  # of hybridmoe.demo.train_mtp

A file with a layer for multi-token prediction (--mtp adds one to a synthetic model) is also run
with `--speculate mtp`; the table shows its speed beside that without drafts, and how many of them
were accepted: hardly any of a random model's, where what counts is that nothing is lost.

All run greedily from the same random token ids and take turns, so that a noisy machine hurts them
alike; figures are medians over the turns. llama.cpp runs with its default attention and with
`use_extra_bufts` off: with it on, 0.3.36 aborts on AMX machines. Elsewhere it runs in both
settings, and the better of them is the peer. ik_llama.cpp has no package that could run here.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS, Row, bar, machine, print_report
from bench._llama_cpp import LlamaCpp
from bench._predicted import Speed, between, plan_of, predict
from bench.synthetic import K2_SLICE, MOONLIGHT, Shape, write_synthetic
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.engine import Engine as OurEngine
from hybridmoe.engine.request import Event, Finished, Request
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.gguf.accounting import take_account
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits as MachineLimits
from hybridmoe.hardware.limits import measure
from hybridmoe.kernels import ops
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.placement.read_ahead import read_ahead
from hybridmoe.text.tokenizer import Tokenizer

SHAPES = {"k2-slice": K2_SLICE, "moonlight": MOONLIGHT}
PROMPTS = {"k2-slice": (32, 512, 2048), "moonlight": (32, 512)}
OTHER_PROMPTS = (32, 256)

# Bars of the synthetic shapes: multiples of the peer (with AMX; without), shares of a limit.
DECODE_TIMES, PROMPT_TIMES, PROMPT_FROM = (1.6, 1.0), (5.0, 1.3), 512
DECODE_SHARE = {"k2-slice": 0.85}  # of what memory allows
WARM_UP_TOKENS = 64
DRAFTING, DRAFTING_SHARE = "drafts by mtp", 0.98  # of the speed without, at least
DEEP_SHARE, DEEP_FROM = 0.95, 2048  # of our own speed after the shortest prompt


Engine = Callable[[list[int], int], Speed]


@contextmanager
def hybridmoe_engine(path: Path, speculate: str = "off") -> Iterator[Engine]:
    """hybridmoe, through the engine that chat uses; a fresh one each turn, with nothing cached."""
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        model = Decoder(Weights(file), config if speculate == "off" else config.with_mtp())
        read_ahead(file, lambda done, total: None)

        def run(ids: list[int], num_decode: int) -> Speed:
            params = SamplingParams(temperature=0.0, max_tokens=num_decode, ignore_eos=True)
            config = EngineConfig(
                context_tokens=len(ids) + num_decode, max_running=1, speculate=speculate
            )
            engine = OurEngine(model, frozenset(), config)
            events: SimpleQueue[Event] = SimpleQueue()
            engine.submit(Request(prompt_ids=ids, params=params), events.put)
            while not isinstance(event := events.get(), Finished):
                pass
            engine.close()
            usage = event.usage
            drafted, decoded = usage.draft_tokens, (num_decode - 1) / usage.decode_s
            accepted = usage.accepted_tokens / drafted if drafted else None
            return Speed(len(ids) / usage.prompt_s, decoded, accepted)

        yield run


@contextmanager
def llama_cpp_engine(
    path: Path, context_tokens: int, num_threads: int, use_extra_bufts: bool
) -> Iterator[Engine]:
    """llama.cpp: the same greedy loop over its C API."""
    with GGUFFile.open(path) as file:
        yarn = ModelConfig.from_metadata(file.metadata).yarn
    betas = (yarn.beta_fast, yarn.beta_slow) if yarn else None
    with LlamaCpp(
        path,
        context_tokens=context_tokens,
        num_threads=num_threads,
        use_extra_bufts=use_extra_bufts,
        yarn_betas=betas,
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
@click.option(
    "--synthetic",
    type=click.Choice(list(SHAPES)),
    help="Synthetic model of this shape, with random weights.",
)
@click.option("--layers", type=int, help="Layers of the synthetic model.")
@click.option("--experts", type=int, help="Experts per layer of the synthetic model.")
@click.option(
    "--expert-type",
    default="Q4_K",
    show_default=True,
    help="Tensor type of the synthetic model's experts.",
)
@click.option("--mtp", is_flag=True, help="Add a layer for multi-token prediction to it.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True),
    help="Take the prompts' tokens from this text [default: random tokens].",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option(
    "--prompt", "prompts", type=int, multiple=True, help="Tokens of a prompt; may be repeated."
)
@click.option(
    "--decode", "num_decode", type=int, default=32, show_default=True, help="Tokens to decode."
)
@click.option("--threads", type=int, help="CPU threads [default: physical cores].")
@click.option(
    "--turns", type=int, default=3, show_default=True, help="Turns of each; figures are medians."
)
@click.option("--peer/--no-peer", default=True, show_default=True, help="Run llama.cpp too.")
@click.option(
    "--out", is_flag=False, flag_value="", help="Write the JSON, into results/ or to this path."
)
def main(
    model: Path | None,
    synthetic: str | None,
    layers: int | None,
    experts: int | None,
    expert_type: str,
    mtp: bool,
    text: Path | None,
    keep: Path | None,
    prompts: tuple[int, ...],
    num_decode: int,
    threads: int | None,
    turns: int,
    peer: bool,
    out: str | None,
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
                shape = replace(shape, num_mtp_layers=int(mtp))
                write_synthetic(path, shape, expert_type=QuantType[expert_type])
        name = synthetic or path.stem
        prompts = tuple(sorted(prompts)) or PROMPTS.get(name, OTHER_PROMPTS)
        context_tokens = max(prompts) + num_decode
        engines = {"ours": stack.enter_context(hybridmoe_engine(path))}
        with GGUFFile.open(path) as file:
            config = ModelConfig.from_metadata(file.metadata)
            source = None if text is None else _tokens_of(text, file)
        if config.has_mtp:
            engines[DRAFTING] = stack.enter_context(hybridmoe_engine(path, "mtp"))
        if peer:
            for use_extra_bufts in (False,) if "amx" in isa.supported() else (False, True):
                engines[f"llama.cpp, use_extra_bufts={use_extra_bufts}"] = stack.enter_context(
                    llama_cpp_engine(path, context_tokens, ops.num_threads(), use_extra_bufts)
                )
        with GGUFFile.open(path) as file:
            total = take_account(file.tensors.values(), file.metadata).total
        measured = measure()
        limits = Limits.of(measured, total.token_bytes, total.active_params)
        speeds = {
            num_prompt: _measure(
                engines, _ids(num_prompt, config.vocab_size, source), num_decode, turns
            )
            for num_prompt in prompts
        }
        rates = between(measured, measure())
        plan = plan_of(path, context_tokens)
        predicted = {num: predict(plan, rates, num, num_decode) for num in prompts}
        about = {
            "token_gb": round(total.token_bytes / 1e9, 3),
            "peers": [engine for engine in engines if engine not in ("ours", DRAFTING)],
            "num_decode": num_decode,
        }
        target = Path(out) if out else RESULTS / f"{machine()['date']}_generate_{name}.json"
        rows = _rows(name, speeds, limits, predicted)
        print_report(rows, about=about, out=None if out is None else target)


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens/s that the machine allows: of decode by memory, of a prompt by arithmetic."""

    decode: float
    prompt: float

    @classmethod
    def of(cls, measured: MachineLimits, token_bytes: int, active_params: int) -> "Limits":
        return cls(measured.read.all / token_bytes, measured.prompts.all / (2 * active_params))


def _tokens_of(text: Path, file: GGUFFile) -> list[int]:
    with closing(Tokenizer(file.path, file.metadata)) as tokenizer:
        return tokenizer.encode(text.read_text(), parse_special=True)


def _ids(num_prompt: int, vocab_size: int, source: list[int] | None) -> list[int]:
    """The last tokens of the source, which its text goes on from; or random ones."""
    if source is not None:
        return (source * (1 + num_prompt // len(source)))[-num_prompt:]
    rng = np.random.default_rng(num_prompt)
    found: list[int] = rng.integers(0, min(256, vocab_size), num_prompt).tolist()
    return found


def _measure(
    engines: dict[str, Engine], ids: list[int], num_decode: int, turns: int
) -> dict[str, Speed]:
    """The median speed of each engine."""
    speeds: dict[str, list[Speed]] = {name: [] for name in engines}
    for engine in engines.values():  # page faults, threads, allocators
        engine(ids[:WARM_UP_TOKENS], 2)
    for _ in range(turns):
        for name, engine in engines.items():
            speeds[name].append(engine(ids, num_decode))
    return {
        name: Speed(
            median(s.prompt for s in found), median(s.decode for s in found), found[-1].accepted
        )
        for name, found in speeds.items()
    }


def _rows(
    name: str,
    speeds: dict[int, dict[str, Speed]],
    limits: Limits,
    predicted: dict[int, Speed],
) -> list[Row]:
    """Two rows for each prompt; the shapes with promises get their bars, notes the prediction."""
    is_promised = name in SHAPES
    decode_times, prompt_times = (
        times[isa.active() != "amx"] for times in (DECODE_TIMES, PROMPT_TIMES)
    )
    first = speeds[min(speeds)]["ours"].decode
    rows = []
    for num_prompt, found in speeds.items():
        ours = found["ours"]
        peers = [speed for engine, speed in found.items() if engine not in ("ours", DRAFTING)]
        peer = max((speed.prompt for speed in peers), default=None)
        least = bar(peer=peer, times=prompt_times)
        has_bar = is_promised and num_prompt >= PROMPT_FROM
        rows.append(
            Row(
                f"{name} prompt of {num_prompt}",
                ours.prompt,
                "tok/s",
                limits.prompt,
                peer,
                least if has_bar else None,
                f"plan: {predicted[num_prompt].prompt:.4g}",
            )
        )
        peer = max((speed.decode for speed in peers), default=None)
        share = DECODE_SHARE.get(name, 0.0)
        least = bar(limit=limits.decode, share=share, peer=peer, times=decode_times)
        if num_prompt >= DEEP_FROM:
            least = DEEP_SHARE * first
        has_bar = is_promised and (num_prompt == min(speeds) or num_prompt >= DEEP_FROM)
        rows.append(
            Row(
                f"{name} decode after {num_prompt}",
                ours.decode,
                "tok/s",
                limits.decode,
                peer,
                least if has_bar else None,
                f"plan: {predicted[num_prompt].decode:.4g}",
            )
        )
        if (drafting := found.get(DRAFTING)) is not None:
            share = "no drafts"
            if drafting.accepted is not None:
                share = f"{100 * drafting.accepted:.0f} % accepted"
            rows.append(
                Row(
                    f"{name} decode after {num_prompt}, {DRAFTING}",
                    drafting.decode,
                    "tok/s",
                    limits.decode,
                    ours.decode,
                    DRAFTING_SHARE * ours.decode,
                    f"{drafting.decode / ours.decode:.2f} x without; {share}",
                )
            )
    return rows


def changed(shape: Shape, layers: int | None, experts: int | None) -> Shape:
    """The shape with as many layers and experts as were asked for."""
    return replace(
        shape, num_layers=layers or shape.num_layers, num_experts=experts or shape.num_experts
    )


if __name__ == "__main__":
    main()

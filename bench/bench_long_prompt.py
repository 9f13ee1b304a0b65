"""CPU time of a token of a prompt, by the prompt's length, beside llama.cpp on the same file.

    python bench/bench_long_prompt.py                    # the embedded model, the best kernels
    python bench/bench_long_prompt.py --isa avx2 --step-tokens 512
    python bench/bench_long_prompt.py model.gguf --kv-type int8 --no-llama-cpp

Steps are as long as the engine's by default. One thread and its CPU time. Engines and lengths take
turns, so that other load affects all. `value` is tokens a second of CPU time; notes have the ratio
of a token's time to that of the shortest prompt, whose bar for the longest is 2.5.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench._llama_cpp import LlamaCpp
from hybridmoe.config import KV_TYPES, EngineConfig, Expansion, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.prefill_budget import PrefillBudget
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.step_plan import quick_step_tokens

LENGTHS = (512, 2048, 8192)
MOST_TIMES = 2.5
Prefill = Callable[[list[int]], object]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--isa", "isa_name", type=click.Choice(isa.supported()), help="Kernels.")
@click.option("--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0], show_default=True)
@click.option("--step-tokens", type=int, help="Of every step; default: as the engine chooses.")
@click.option("--llama-cpp/--no-llama-cpp", default=True, show_default=True)
@click.option("--turns", type=int, default=3, show_default=True)
def main(
    model: Path | None,
    isa_name: str | None,
    kv_type: str,
    step_tokens: int | None,
    llama_cpp: bool,
    turns: int,
) -> None:
    """Print a prompt's pace at each length."""
    path = model or demo_path()
    ops.set_num_threads(1)
    with ExitStack() as stack:
        stack.enter_context(isa.forced(isa_name) if isa_name else nullcontext())
        file = stack.enter_context(GGUFFile.open(path))
        config = ModelConfig.from_metadata(file.metadata)
        engines = {"hybridmoe": _prefill(file, config, kv_type, step_tokens)}
        if llama_cpp:
            peer = stack.enter_context(LlamaCpp(path, context_tokens=max(LENGTHS), num_threads=1))
            engines["llama.cpp"] = lambda ids: (peer.reset(), peer.step(ids))
        print_report(_rows(_turns(engines, config.vocab_size, turns)))


def _prefill(file: GGUFFile, config: ModelConfig, kv_type: str, step_tokens: int | None) -> Prefill:
    context = max(LENGTHS)
    engine = EngineConfig(context_tokens=context, kv_type=kv_type, kv_tokens=context)
    quick_tokens = quick_step_tokens(config, context)
    budget = PrefillBudget(engine.chunk_tokens, engine.decode_slowdown, quick_tokens)
    cache = KvCache(config, plan_kv(config, engine, 0))
    model, pages = Decoder(Weights(file), config), range(cache.plan.num_pages)
    expansion = Expansion.of(config, isa.active(), kv_type)

    def prefill(ids: list[int]) -> None:
        chunks = expansion.chunks(len(ids), lambda: step_tokens or budget.num_tokens(0))
        for start, num_tokens, num_expanded in chunks:
            began = time.process_time()
            span = Span(num_tokens, start, pages, num_expanded)
            model.forward(ids[start : start + num_tokens], [span], cache.layers)
            budget.update(0, num_tokens, time.process_time() - began)

    return prefill


def _turns(
    engines: dict[str, Prefill], vocab_size: int, turns: int
) -> dict[int, dict[str, list[float]]]:
    """Seconds of a token, by length and engine."""
    rng = np.random.default_rng(1)
    found = {length: {name: list[float]() for name in engines} for length in LENGTHS}
    for turn in range(turns + 1):  # the first warms up
        for length in LENGTHS if turn else LENGTHS[:1]:
            ids = rng.integers(0, vocab_size, length).tolist()
            for name, prefill in engines.items():
                start = time.process_time()
                prefill(ids)
                if turn:
                    found[length][name].append((time.process_time() - start) / length)
    return found


def _rows(seconds: dict[int, dict[str, list[float]]]) -> list[Row]:
    first = {name: median(times) for name, times in seconds[LENGTHS[0]].items()}
    rows = []
    for length, by_engine in seconds.items():
        token = {name: median(times) for name, times in by_engine.items()}
        notes = [f"{name} {token[name] / first[name]:.2f}" for name in token]
        peer = 1 / token["llama.cpp"] if "llama.cpp" in token else None
        is_last = length == LENGTHS[-1]
        rows.append(
            Row(
                f"prompt of {length}",
                1 / token["hybridmoe"],
                "tok/s",
                peer=peer,
                bar=1 / (MOST_TIMES * first["hybridmoe"]) if is_last else None,
                note=f"times a token of {LENGTHS[0]}: {', '.join(notes)}",
            )
        )
    return rows


if __name__ == "__main__":
    main()

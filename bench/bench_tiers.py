"""Decode of a model several times larger than its expert RAM, beside llama.cpp's mmap.

    python bench/bench_tiers.py                      # K2's layers, 9.5 GB of experts in 2.8 GiB
    python bench/bench_tiers.py --expert-ram 2GiB --prefetch 8
    python bench/bench_tiers.py --keep k2-tiers.gguf # do not write the file again next time

Both programs run alone in a control group whose limit is the budget for experts, the other weights,
and 384 MiB for Python and what is computed; the page cache counts, and is emptied before. If
no group can be made, ours runs without a limit, past the page cache as always, without a peer.
Rates of disk and memory are sampled between the tokens, and each token's hits are counted; from
these the cost model of `hybridmoe plan` predicts the time of each token.

Then a simulated card decodes routing of its own, with and without slots for a tenth of the experts
beside the same RAM: its VRAM and its link are as fast as they are said to be.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._card_decode import card_rows, decode_splits
from bench._harness import RESULTS, Row, bar, machine, print_report
from bench._llama_cpp import LlamaCpp
from bench._memory_limit import MemoryLimit, memory_limit
from bench._rates import RateSampler, Sample
from bench.synthetic import K2_SLICE, write_synthetic
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Finished, PromptProgress, Request
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.experts.stats import ExpertCounters
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.hardware.limits import measure
from hybridmoe.kernels import ops
from hybridmoe.model.decoder import Decoder
from hybridmoe.placement.options import LoadOptions
from hybridmoe.placement.placer import place
from hybridmoe.planning.cost_model import Hits, Step, decode
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.rates import rates_of
from hybridmoe.units import parse_bytes

PREDICTED_SHARE, PEER_TIMES, LEAST_RATIO = 0.85, 2.0, 3.0  # the bars
ACCURACY = 0.8  # of the prediction, either way
OVERHEAD_BYTES = 3 << 27
WARM_UP_TOKENS = 12  # the cache is full after these
SAME_TOKENS = 12  # of one word at the end, whose experts have all come by its second half
EMBEDDING_GAIN = 3000.0  # about half of a token's experts are those of the token before


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--experts", default=96, show_default=True, help="Experts per layer.")
@click.option("--layers", default=5, show_default=True, help="Layers; the first is dense.")
@click.option(
    "--expert-type", default="Q4_K", show_default=True, help="Tensor type of the experts."
)
@click.option("--expert-ram", default="2.8GiB", show_default=True, help="RAM for experts.")
@click.option("--prefetch", default=0, show_default=True, help="Experts to prefetch per layer.")
@click.option("--tokens", default=24, show_default=True, help="Tokens that are timed.")
@click.option("--peer-s", default=60.0, show_default=True, help="Time limit of llama.cpp, seconds.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option(
    "--out", is_flag=False, flag_value="", help="Write the JSON, into results/ or to this path."
)
@click.option("--vram-gbs", default=700.0, show_default=True, help="GB/s of the simulated card.")
@click.option("--link-gbs", default=25.0, show_default=True, help="GB/s of its link.")
@click.option("--worker", type=click.Choice(["ours", "llama.cpp", "card"]), hidden=True)
def main(
    experts: int,
    layers: int,
    expert_type: str,
    expert_ram: str,
    prefetch: int,
    tokens: int,
    peer_s: float,
    keep: Path | None,
    out: str | None,
    vram_gbs: float,
    link_gbs: float,
    worker: str | None,
) -> None:
    budget = parse_bytes(expert_ram)
    if worker is not None:
        assert keep is not None
        if worker == "ours":
            result = _ours(keep, budget, prefetch, tokens)
        elif worker == "llama.cpp":
            result = _llama_cpp(keep, tokens, peer_s)
        else:
            result = decode_splits(keep, budget, tokens, vram_gbs * 1e9, link_gbs * 1e9)
        print(json.dumps(result))
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = keep or Path(folder) / "tiers.gguf"
        if not path.exists():
            shape = replace(K2_SLICE, num_experts=experts, num_layers=layers)
            kind = QuantType[expert_type]
            write_synthetic(path, shape, expert_type=kind, embedding_gain=EMBEDDING_GAIN)
        plan = _whole(path)
        sizes = plan.problem.sizes
        others = sizes.total_bytes - sizes.all_expert_bytes
        limit = stack.enter_context(memory_limit(budget + others + OVERHEAD_BYTES))
        arguments = [f"--expert-ram={expert_ram}", f"--prefetch={prefetch}", f"--tokens={tokens}"]
        arguments += [f"--keep={path}", f"--peer-s={peer_s}"]
        arguments += [f"--vram-gbs={vram_gbs}", f"--link-gbs={link_gbs}"]
        ours = _run("ours", path, limit, arguments)
        peak = limit.peak_bytes if limit else None
        peer = _run("llama.cpp", path, limit, arguments) if limit else None
        card = _run("card", path, limit, arguments)
    steps = _predicted(plan, ours["rates"], ours["hit_rates"])
    rows = [*_rows(plan, budget, ours, peer, steps, peak), *card_rows(card, PREDICTED_SHARE)]
    about = {
        "expert_gib": round(sizes.all_expert_bytes / 2**30, 2),
        "limit_gib": round(limit.num_bytes / 2**30, 2) if limit else "none could be set",
        "peak_of_limit_gib": round(peak / 2**30, 2) if peak else None,
        "disk_gb_s": [round(disk / 1e9, 2) for _, disk in ours["rates"]],
        "dram_gb_s": [round(dram / 1e9, 1) for dram, _ in ours["rates"]],
        "hit_rate": round(ours["hit_rate"], 3),
        "wait_ms": round(1e3 * ours["read_wait_s"] / len(ours["seconds"]), 1),
        "prefetch": prefetch,
        "counters": ours["counters"],
        "predicted_ms": {
            name: round(1e3 * float(np.mean([step.seconds[name] for step in steps])), 1)
            for name in steps[0].seconds
        },
        "predicted_token_ms": [round(1e3 * step.total_s) for step in steps],
        "token_ms": [round(1e3 * s) for s in ours["seconds"]],
        "peer_token_ms": [round(1e3 * s) for s in peer["seconds"]] if peer else None,
        "card": card,
    }
    target = Path(out) if out else RESULTS / f"{machine()['date']}_tiers.json"
    print_report(rows, about=about, out=None if out is None else target)


def _whole(path: Path) -> Plan:
    """Memory plan with all experts in RAM."""
    outline = read_outline(path)
    engine = EngineConfig(context_tokens=64, kv_tokens=64)
    return plan_memory(outline.config, outline.tensors, engine, Budgets(ram_bytes=1 << 50))


def _run(name: str, path: Path, limit: MemoryLimit | None, arguments: list[str]) -> dict[str, Any]:
    """Run one program in a process of its own, with nothing of the file in the page cache."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    command = [sys.executable, __file__, f"--worker={name}", *arguments]
    done = limit.run(command) if limit else subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _token_ids(num_tokens: int) -> list[int]:
    """Random ids: a random model left to itself repeats one token, by the same experts."""
    return np.random.default_rng(0).integers(0, K2_SLICE.vocab_size, num_tokens).tolist()


def _ours(path: Path, budget: int, prefetch: int, num_tokens: int) -> dict[str, Any]:
    """Decode given tokens, one a step, with the RAM cache over the file."""
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        ids = _token_ids(WARM_UP_TOKENS + num_tokens + 1)
        ids += [ids[-1]] * (SAME_TOKENS + 2)  # the last step begins unannounced
        engine_config = EngineConfig(context_tokens=len(ids) + 1, max_running=1, chunk_tokens=1)
        budgets = Budgets(ram_bytes=1 << 50, expert_ram_bytes=budget, num_ahead=prefetch)
        plan = plan_memory(config, file.tensors.values(), engine_config, budgets)
        options = LoadOptions(expert_prefetch=prefetch)
        placed = place(file, plan, NoGpu("the CPU alone"), options)
        cache = placed.disk_cache
        assert cache is not None, "all experts fit"
        decoder = Decoder(placed.weights(file), config, placed.experts)
        engine = Engine(decoder, frozenset(), engine_config)
        events: SimpleQueue[Any] = SimpleQueue()
        sampler = RateSampler(path)
        began: list[float] = []  # a step each
        ended: list[float] = []
        counters: list[ExpertCounters] = []
        rates: list[Sample] = []

        def listen(event: Any) -> None:  # in the engine's thread, before each step
            if isinstance(event, PromptProgress):
                ended.append(time.perf_counter())
                counters.append(cache.stats().counters)
                rates.append(sampler.sample())
                began.append(time.perf_counter())
            events.put(event)

        params = SamplingParams(temperature=0.0, max_tokens=1)
        engine.submit(Request(prompt_ids=ids, params=params), listen)
        while not isinstance(event := events.get(), Finished):
            pass
        assert event.reason in ("length", "stop"), event
        engine.close()
        placed.close()
        sampler.close()
        seconds = np.subtract(ended[1:], began[:-1])  # of a step
        first, last = WARM_UP_TOKENS, WARM_UP_TOKENS + num_tokens
        before, after = counters[first], counters[last]
        return {
            "seconds": seconds[first:last].tolist(),
            "rates": [a.mean(b) for a, b in pairwise(rates[first : last + 1])],
            "hit_rates": [(b - a).hit_rate for a, b in pairwise(counters[first : last + 1])],
            "resident_s": seconds[-SAME_TOKENS // 2 :].tolist(),
            "resident_rates": [a.mean(b) for a, b in pairwise(rates[-SAME_TOKENS // 2 - 1 :])],
            "hit_rate": (after - before).hit_rate,
            "read_wait_s": after.read_wait_s - before.read_wait_s,
            "read_bytes": after.bytes_read - before.bytes_read,
            "num_slots": cache.plan.num_slots,
            "counters": asdict(counters[-1]),
            "rss": _peak_rss(),
        }


def _llama_cpp(path: Path, num_tokens: int, most_s: float) -> dict[str, Any]:
    """Decode the same tokens with llama.cpp, one a step, for `most_s` at most."""
    ids = _token_ids(WARM_UP_TOKENS + num_tokens)
    with LlamaCpp(path, context_tokens=len(ids), num_threads=ops.num_threads()) as peer:
        seconds: list[float] = []
        begun = time.perf_counter()
        for token_id in ids:
            started = time.perf_counter()
            peer.step([token_id])
            seconds.append(time.perf_counter() - started)
            if time.perf_counter() - begun > most_s and len(seconds) > 2:
                break
    return {"seconds": seconds[min(WARM_UP_TOKENS, len(seconds) // 2) :], "rss": _peak_rss()}


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _predicted(
    plan: Plan, rates: Sequence[Sequence[float]], hit_rates: Sequence[float]
) -> list[Step]:
    """Predict the time of each token, by the cost model, with its hits and the rates around it."""
    limits = measure()
    peak = {"peak_ops": limits.prompts.all, "float_ops": limits.float32.all}
    steps = []
    for (dram, disk), hit_rate in zip(rates, hit_rates, strict=True):
        now = rates_of(isa.active(), dram=dram, disk=disk, **peak)
        steps.append(decode(plan, now, Hits(vram=0.0, ram=hit_rate), WARM_UP_TOKENS))
    return steps


def _speed(seconds: Iterable[float]) -> float:
    """Tokens/s of all tokens together."""
    return 1 / float(np.mean(list(seconds)))


def _rows(
    plan: Plan,
    budget: int,
    ours: dict[str, Any],
    peer: dict[str, Any] | None,
    steps: Sequence[Step],
    peak: int | None,
) -> list[Row]:
    sizes = plan.problem.sizes
    speed, predicted = _speed(ours["seconds"]), _speed(step.total_s for step in steps)
    peer_speed = _speed(peer["seconds"]) if peer else None
    resident = _predicted(plan, ours["resident_rates"], [1.0] * len(ours["resident_rates"]))
    others = sizes.total_bytes - sizes.all_expert_bytes
    allowed = budget + others + OVERHEAD_BYTES
    disk = float(np.mean([disk for _, disk in ours["rates"]]))
    return [
        Row("experts over their RAM", sizes.all_expert_bytes / budget, "times", bar=LEAST_RATIO),
        Row(
            "decode",
            speed,
            "tok/s",
            predicted,
            peer_speed,
            bar(limit=predicted, share=PREDICTED_SHARE, peer=peer_speed, times=PEER_TIMES),
            note=f"limit: the cost model at {100 * ours['hit_rate']:.0f} % hits",
        ),
        Row(
            "accuracy of the cost model",
            min(speed, predicted) / max(speed, predicted),
            "",
            bar=ACCURACY,
        ),
        Row(
            "decode, all experts found",
            _speed(ours["resident_s"]),
            "tok/s",
            _speed(step.total_s for step in resident),
            note="one token again and again: what is lost without any disk",
        ),
        Row(
            "read while decoding",
            ours["read_bytes"] / sum(ours["seconds"]) / 1e9,
            "GB/s",
            disk / 1e9,
        ),
        Row("memory left", (allowed - (peak or ours["rss"])) / 2**30, "GiB", bar=0.0),
    ]


if __name__ == "__main__":
    main()

"""The endpoint under load, beside llama-cpp-python's server on the same file, in one run.

    python bench/bench_serve.py                                # the embedded model
    python bench/bench_serve.py model.gguf --clients 1 --clients 8 --rate 2
    python bench/bench_serve.py --synthetic k2-slice --layers 3 --experts 24

Closed loop: a number of clients, each of which asks again when its response has ended. Open loop:
requests arrive at random (Poisson), whether or not earlier ones have ended. Every response has the
same number of tokens (end tokens are forbidden), every prompt is a different one. Both servers are
up all the time and take turns. Times as a client sees them: to the first piece of text, and between
pieces (medians and the 95th and 99th percentile).
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench._served import peer_served, served
from bench.bench_generate import SHAPES, changed
from bench.synthetic import write_synthetic
from hybridmoe.demo import demo_path
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import ops
from hybridmoe.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Load:
    """Results of one load; times in seconds."""

    num_tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks one server for responses of a fixed length."""

    client: httpx2.AsyncClient
    bias: dict[str, float]  # forbids the end tokens
    num_tokens: int

    async def ask(self, prompt: str, load: Load) -> None:
        body = {
            "prompt": prompt, "max_tokens": self.num_tokens, "temperature": 0.0, "stream": True,
            "logit_bias": self.bias,
        }  # fmt: skip
        began = last = time.perf_counter()
        async with self.client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                raise RuntimeError((await reply.aread()).decode()[:500])
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if not json.loads(line[6:])["choices"][0]["text"]:
                    continue
                now = time.perf_counter()
                (load.first if last == began else load.between).append(now - last)
                last = now
        load.num_tokens += self.num_tokens


Prompts = Callable[[], str]
Scenario = Callable[[Asker, Prompts], Awaitable[Load]]


def closed(num_clients: int, num_requests: int) -> Scenario:
    """Closed loop of `num_clients` clients, each with its share of the requests."""

    async def run(asker: Asker, prompts: Prompts) -> Load:
        load = Load()

        async def client() -> None:
            for _ in range(max(1, num_requests // num_clients)):
                await asker.ask(prompts(), load)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        load.seconds = time.perf_counter() - began
        return load

    return run


def arriving(rate: float, num_requests: int) -> Scenario:
    """Open loop of `rate` requests per second at random times, the same for each server."""

    async def run(asker: Asker, prompts: Prompts) -> Load:
        load = Load()
        gaps = np.random.default_rng(1).exponential(1 / rate, num_requests)

        async def one(at: float) -> None:
            await asyncio.sleep(at)
            await asker.ask(prompts(), load)

        began = time.perf_counter()
        await asyncio.gather(*(one(float(at)) for at in gaps.cumsum()))
        load.seconds = time.perf_counter() - began
        return load

    return run


def rows_of(name: str, ours: Load, theirs: Load | None) -> list[Row]:
    """Throughput, and the percentiles of both times."""

    def at(times: list[float], percent: int) -> float:
        return float(np.percentile(times, percent)) * 1e3 if times else 0.0

    speed = theirs.tokens_per_s if theirs else None
    rows = [Row(f"{name}: throughput", ours.tokens_per_s, "tok/s", peer=speed, bar=speed)]
    for what, kind in (("first token", "first"), ("next token", "between")):
        for percent in (50, 95, 99):
            peer = at(getattr(theirs, kind), percent) if theirs else None
            value = at(getattr(ours, kind), percent)
            rows.append(Row(f"{name}: {what} p{percent}", value, "ms", peer=peer))
    return rows


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
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option(
    "--clients",
    type=int,
    multiple=True,
    default=(1, 8),
    show_default=True,
    help="Closed loop of this many clients; may be repeated.",
)
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    help="Open loop of this many requests per second; may be repeated.",
)
@click.option(
    "--requests", "num_requests", default=16, show_default=True, help="Requests of each load."
)
@click.option("--prompt", "prompt_words", default=32, show_default=True, help="Words of a prompt.")
@click.option("--decode", "num_tokens", default=32, show_default=True, help="Tokens of a response.")
@click.option(
    "--ctx", "context_tokens", default=512, show_default=True, help="Context of a request, tokens."
)
@click.option(
    "--peer/--no-peer", default=True, show_default=True, help="Run llama-cpp-python's server too."
)
def main(
    model: Path | None,
    synthetic: str | None,
    layers: int | None,
    experts: int | None,
    keep: Path | None,
    clients: tuple[int, ...],
    rates: tuple[float, ...],
    num_requests: int,
    prompt_words: int,
    num_tokens: int,
    context_tokens: int,
    peer: bool,
) -> None:
    scenarios = {f"{n} clients": closed(n, num_requests) for n in clients}
    scenarios |= {f"{rate:g}/s": arriving(rate, num_requests) for rate in rates}
    with ExitStack() as stack:
        path = model or demo_path()
        if synthetic:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = keep or Path(folder) / f"{synthetic}.gguf"
            if not path.exists():
                shape = changed(SHAPES[synthetic], layers, experts)
                write_synthetic(path, shape, expert_type=QuantType.Q4_K)
        bias = _no_end(path)
        slots = ["--slots", str(max(clients)), "--ctx", str(context_tokens)]
        servers = {"ours": stack.enter_context(served([str(path), *slots])).url}
        if peer:
            theirs = peer_served(path, context_tokens, ops.num_threads())
            servers["peer"] = stack.enter_context(theirs).url
        loads = asyncio.run(_run(servers, scenarios, bias, num_tokens, prompt_words))
    rows = [
        row
        for name in scenarios
        for row in rows_of(name, loads["ours", name], loads.get(("peer", name)))
    ]
    if {1, 8} <= set(clients):
        one, eight = (loads["ours", f"{n} clients"].tokens_per_s for n in (1, 8))
        note = f"{eight / one:.2f} times one client's"
        rows.append(Row("8 clients, one's twice", eight, "tok/s", bar=2.0 * one, note=note))
    print_report(rows)


async def _run(
    servers: dict[str, str],
    scenarios: dict[str, Scenario],
    bias: dict[str, float],
    num_tokens: int,
    prompt_words: int,
) -> dict[tuple[str, str], Load]:
    limits = httpx2.Limits(max_connections=None)
    loads: dict[tuple[str, str], Load] = {}
    async with (
        httpx2.AsyncClient(base_url=servers["ours"], timeout=600, limits=limits) as ours,
        httpx2.AsyncClient(base_url=servers.get("peer", ""), timeout=600, limits=limits) as peer,
    ):
        for name, client in (("ours", ours), ("peer", peer)):
            if name in servers:  # warm: page faults, threads, allocators
                await Asker(client, bias, num_tokens).ask(_prompts(0, prompt_words)(), Load())
        for number, (load_name, scenario) in enumerate(scenarios.items(), 1):
            for name, client in (("ours", ours), ("peer", peer)):
                if name in servers:
                    prompts = _prompts(number, prompt_words)
                    asker = Asker(client, bias, num_tokens)
                    loads[name, load_name] = await scenario(asker, prompts)
    return loads


def _prompts(seed: int, num_words: int) -> Prompts:
    """Texts of short made-up words; no two have the same beginning."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice(letters) for letters in ("bdfgklmnprst", "aeiou", "nrst"))

    return lambda: " ".join(word() for _ in range(num_words))


def _no_end(path: Path) -> dict[str, float]:
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        ids = sorted(tokenizer.eos_ids)
        tokenizer.close()
    return {str(token_id): -100.0 for token_id in ids}


if __name__ == "__main__":
    main()

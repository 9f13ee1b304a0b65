"""Two models that take turns in one server, unloaded after a second without use, under load.

    python bench/soak_models.py                            # 1000 requests by 16 clients
    python bench/soak_models.py --requests 200 --together  # both stay loaded while they are used

The embedded model, and a small one with random weights. Clients send bursts with pauses between
them, in which both models are unloaded; some leave early. Each greedy response must be the one that
the model gave to the same prompt at first. Exits with 1 where one was lost or wrong, or memory had
grown.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import machine
from bench._served import Served, served
from bench.synthetic import Shape, write_synthetic
from hybridmoe.demo import demo_path

__all__ = ["SMALL", "ModelSoak", "Rest", "server_arguments"]

SMALL = Shape(
    num_layers=2, num_dense_layers=1, hidden=256, dense_inter=512, num_heads=4, q_lora_rank=0,
    num_experts=8, top_k=2, expert_inter=256, num_shared_experts=1, routed_scale=1.0,
)  # fmt: skip
_PROMPTS = ("What is 47 + 38?", "Hello!", "My name is Bokira.", "Which day comes after Monday?")
_REPLY_S = 300  # what takes longer is stuck
_LEAVING = 0.05  # of the clients
_RSS_GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class Rest:
    """The process while no model is loaded."""

    requests: int  # answered until then
    rss_mib: float
    threads: int
    files: int
    maps: int  # of GGUF files


@dataclass(slots=True)
class ModelSoak:
    """Clients of a server with several models, and what they saw."""

    server: Served
    models: Sequence[str]
    num_clients: int
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    longest_s: float = 0.0
    _wanted: dict[tuple[str, str], str] = field(default_factory=dict)

    async def run(self, num_requests: int, num_bursts: int) -> None:
        """Send the requests in bursts; wait after each until no model is loaded."""
        async with self._client() as http:
            for model in self.models:
                for prompt in _PROMPTS:
                    self._wanted[model, prompt] = await self._text(http, model, prompt, False)
        self.rests.append(await self._at_rest())
        for i in range(num_bursts):
            left = iter(range(num_requests * i // num_bursts, num_requests * (i + 1) // num_bursts))
            await asyncio.gather(*(self._ask_all(left) for _ in range(self.num_clients)))
            self.rests.append(await self._at_rest())
        log = self.server.log.read_text(encoding="utf-8", errors="replace")
        if any(rest.maps for rest in self.rests):
            self.faults.append("a model's file was mapped while none was loaded")
        if "Traceback" in log:
            self.faults.append(f"the server's log: {log[log.index('Traceback') :][:2000]}")

    def check_memory(self) -> None:
        """Compare memory with that after a fifth of the bursts; for long runs."""
        warm, last = self.rests[max(1, len(self.rests) // 5)], self.rests[-1]
        if last.rss_mib > warm.rss_mib * _RSS_GROWTH:
            self.faults.append(f"memory: {warm.rss_mib} MiB when warm, {last.rss_mib} at the end")
        if last.threads > warm.threads or last.files > warm.files:
            self.faults.append(f"threads, files: {warm} when warm, {last} at the end")

    async def _ask_all(self, numbers: Any) -> None:
        async with self._client() as http:
            for number in numbers:
                rng = random.Random(1000 * self.seed + number)
                model, prompt = rng.choice(self.models), rng.choice(_PROMPTS)
                began = time.perf_counter()
                try:
                    ended = await self._ask(http, rng, model, prompt)
                except (httpx2.HTTPError, KeyError, ValueError) as error:
                    ended = type(error).__name__
                    self.faults.append(f"{model}: {error!r}")
                self.longest_s = max(self.longest_s, time.perf_counter() - began)
                self.counts[ended] += 1
                await asyncio.sleep(rng.choice([0.0, 0.0, 0.05, 0.5]))

    async def _ask(
        self, http: httpx2.AsyncClient, rng: random.Random, model: str, prompt: str
    ) -> str:
        patience = rng.choice([0.01, 0.2, 1.0]) if rng.random() < _LEAVING else None
        try:
            async with asyncio.timeout(patience):
                text = await self._text(http, model, prompt, rng.random() < 0.5)
        except TimeoutError:
            return "left"
        if text != self._wanted[model, prompt]:
            self.faults.append(f"{model}: {text!r}; expected {self._wanted[model, prompt]!r}")
        return "answered"

    async def _text(
        self, http: httpx2.AsyncClient, model: str, prompt: str, is_stream: bool
    ) -> str:
        body = {
            "model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0,
            "ignore_eos": True, "stream": is_stream,
        }  # fmt: skip
        text = ""
        async with http.stream("POST", "/v1/completions", json=body) as reply:
            if not is_stream:
                return str(json.loads(await reply.aread())["choices"][0]["text"])
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        if line != "" and line != "data: [DONE]":
            raise ValueError(f"a stream ended with {line!r}")
        return text

    async def _at_rest(self) -> Rest:
        process = psutil.Process(self.server.pid)
        async with self._client() as http:
            until = time.perf_counter() + _REPLY_S
            num_rests = 0  # in a row: a client that left may still have a model loaded
            while time.perf_counter() < until and num_rests < 5:
                models = (await http.get("/health")).json()["models"]
                is_rest = all(model["status"] == "unloaded" for model in models.values())
                num_rests = num_rests + 1 if is_rest else 0
                await asyncio.sleep(0.1)
            if num_rests < 5:
                self.faults.append(f"not unloaded after {_REPLY_S} s: {models}")
        await asyncio.sleep(0.2)  # for the connection to be gone
        maps = Path(f"/proc/{self.server.pid}/maps").read_text().splitlines()
        return Rest(
            requests=self.counts.total(),
            rss_mib=round(process.memory_info().rss / 2**20, 1),
            threads=process.num_threads(),
            files=process.num_fds(),
            maps=sum(line.endswith(".gguf") for line in maps),
        )

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.server.url, timeout=_REPLY_S)


def server_arguments(small: Path, *, together: bool = False) -> list[str]:
    """Serve the embedded model and a small one, which take turns unless `together`."""
    turns = [] if together else ["--max-loaded", "1"]
    models = ["--model", f"demo={demo_path()}", "--model", f"small={small}"]
    return [*models, *turns, "--idle-unload", "1s", "--ctx", "256", "--slots", "8"]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--requests", "num_requests", default=1000, show_default=True)
@click.option("--clients", "num_clients", default=16, show_default=True)
@click.option("--bursts", "num_bursts", default=20, show_default=True)
@click.option("--together", is_flag=True, help="Do not make the models take turns.")
@click.option("--seed", default=0, show_default=True)
def main(num_requests: int, num_clients: int, num_bursts: int, together: bool, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.gguf"
        write_synthetic(small, SMALL)
        with served(server_arguments(small, together=together)) as server:
            soak = ModelSoak(server, ("demo", "small"), num_clients, seed)
            asyncio.run(soak.run(num_requests, num_bursts))
            log = server.log.read_text(encoding="utf-8", errors="replace")
    soak.check_memory()
    for rest in soak.rests:
        print("  ".join(f"{name} {value}" for name, value in asdict(rest).items()))
    for fault in soak.faults[:50]:
        print(f"fault: {fault}")
    about = {
        "machine": machine(), "clients": num_clients, "requests": soak.counts.total(),
        **soak.counts, "faults": len(soak.faults), "loads": log.count("ready: "),
        "longest_s": round(soak.longest_s, 1), "rests": [asdict(rest) for rest in soak.rests],
    }  # fmt: skip
    print(json.dumps(about))
    sys.exit(1 if soak.faults or soak.counts.total() != num_requests else 0)


if __name__ == "__main__":
    main()

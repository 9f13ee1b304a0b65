"""A server under mixed load for minutes, with clients that leave and requests that are wrong.

    python bench/soak_serve.py                              # the embedded model, 5 minutes
    python bench/soak_serve.py --minutes 30 --clients 8 --slots 4

Prints counts of requests by kind and status, and the server at rest (after the start,
after a warm-up of a fifth of the time, and then four times): memory, threads, open files, what
runs, waits and holds pages. Exits with 1 where a request failed that should not have, something
was left running, or anything had grown.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import machine
from bench._served import Served, served
from bench._soak_requests import Ask, Deck, Raw

__all__ = ["Phase", "Rest", "Soak", "server_arguments"]

_REPLY_S = 300  # what takes longer is stuck, on a slow machine too
_REST_S = 300  # likewise for what a server must end because its clients have left
_LEAVING = 0.25  # of the clients
_SPARE_THREADS = 8  # pools grow with the load, and keep threads for a while
_RSS_GROWTH = 1.05


Phase = Callable[[float], bool]  # whether the load ends, given the seconds since it began


@dataclass(frozen=True, slots=True)
class Rest:
    """A server at rest: no request runs, no client is connected."""

    at_s: float
    rss_mib: float
    threads: int
    files: int
    running: float
    waiting: float
    pages_used: float  # shares of all pages
    pages_cached: float


@dataclass(slots=True)
class Soak:
    """The clients of one server, and what they saw."""

    server: Served
    num_clients: int
    seed: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, how it ended)
    faults: list[str] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)

    async def run(self, phases: Sequence[Phase]) -> None:
        """Load the server in phases, the first to warm it up; inspect it at rest around each."""
        deck = Deck(random.Random(self.seed))
        began = time.perf_counter()
        self.rests.append(await self._at_rest(began))
        for is_over in phases:
            await self._load(is_over, deck)
            self.rests.append(await self._at_rest(began))
        first, warm, last = self.rests[0], self.rests[1], self.rests[-1]
        if last.files > first.files:
            self.faults.append(f"open files: {first.files} at first, {last.files} at the end")
        if last.threads > warm.threads + _SPARE_THREADS:
            self.faults.append(f"threads: {warm.threads} when warm, {last.threads} at the end")
        log = self.server.log.read_text(encoding="utf-8", errors="replace")
        if "Traceback" in log:
            self.faults.append(f"the server's log: {log[log.index('Traceback') :][:2000]}")

    def check_memory(self) -> None:
        """Compare memory with that after the warm-up; for runs that are long enough to tell."""
        warm, last = self.rests[1].rss_mib, self.rests[-1].rss_mib
        if last > warm * _RSS_GROWTH:
            self.faults.append(f"memory: {warm:.1f} MiB when warm, {last:.1f} at the end")

    async def _load(self, is_over: Phase, deck: Deck) -> None:
        began = time.perf_counter()

        async def client(number: int) -> None:
            rng = random.Random(self.seed + 1000 * number)
            async with httpx2.AsyncClient(base_url=self.server.url, timeout=_REPLY_S) as http:
                while not is_over(time.perf_counter() - began):
                    name, wanted = deck.deal()
                    try:
                        if isinstance(wanted, Ask):
                            ended = await self._ask(http, rng, name, wanted)
                        else:
                            ended = await self._send(rng, name, wanted)
                    except (httpx2.HTTPError, TimeoutError, OSError) as error:
                        ended = type(error).__name__
                        self.faults.append(f"{name}: {error!r}")
                    self.counts[name, ended] += 1

        await asyncio.gather(*(client(i) for i in range(self.num_clients)))

    async def _ask(self, http: httpx2.AsyncClient, rng: random.Random, name: str, ask: Ask) -> str:
        """Send a request, and perhaps leave: at once, or after some lines of the response."""
        patience = rng.choice([0.001, 0.02, 0.2]) if rng.random() < _LEAVING / 2 else None
        lines = rng.randint(1, 30) if rng.random() < _LEAVING / 2 else None
        try:
            async with asyncio.timeout(patience):
                return await self._reply(http, name, ask, lines)
        except TimeoutError:
            if patience is None:
                raise
            return "left"

    async def _reply(
        self, http: httpx2.AsyncClient, name: str, ask: Ask, most_lines: int | None
    ) -> str:
        method = "GET" if ask.body is None else "POST"
        async with http.stream(method, ask.path, json=ask.body) as reply:
            lines: list[str] = []
            async for line in reply.aiter_lines():
                lines.append(line)
                if ask.is_stream and len(lines) == most_lines:
                    return "left"
        status = reply.status_code
        if status == 429 and ask.body is not None:
            return "429"
        if status != ask.status:
            self.faults.append(f"{name}: {ask} got {status} {' '.join(lines)[:300]}")
        elif ask.is_stream and status == 200:
            self._check_stream(name, ask, [line for line in lines if line])
        elif ask.holds is not None and not ask.holds(json.loads("\n".join(lines))):
            self.faults.append(f"{name}: {ask} got {' '.join(lines)[:600]}")
        return str(status)

    def _check_stream(self, name: str, ask: Ask, lines: list[str]) -> None:
        if not lines or ask.end not in lines[-1]:
            self.faults.append(f"{name}: a stream ended with {lines[-1:]}")
        for line in lines:
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if event.get("error") or event.get("type") in ("error", "response.failed"):
                    self.faults.append(f"{name}: {line[:300]}")

    async def _send(self, rng: random.Random, name: str, raw: Raw) -> str:
        """Send bytes; the status of what comes back, or "closed"."""
        address = urlsplit(self.server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(raw.data)
            for _ in range(raw.size >> 16):
                writer.write(bytes(1 << 16))
                await writer.drain()
            await writer.drain()
            if raw.must_close:
                await asyncio.sleep(rng.choice([0.0, 0.05]))
                return "left"
            async with asyncio.timeout(_REPLY_S):
                head = await reader.readline()
        except ConnectionError:
            return "closed"
        finally:
            writer.close()
        if not head:
            return "closed"
        status = int(head.split()[1])
        if status not in raw.statuses:
            self.faults.append(f"{name}: {raw.data[:200]!r} got {status}")
        return str(status)

    async def _at_rest(self, began: float) -> Rest:
        """The server once nothing runs and no connection is open, if it comes to that."""
        process = psutil.Process(self.server.pid)
        until = time.perf_counter() + _REST_S
        async for metrics in self._metrics():
            rest = Rest(
                at_s=round(time.perf_counter() - began, 1),
                rss_mib=round(process.memory_info().rss / 2**20, 1),
                threads=process.num_threads(),
                files=process.num_fds(),
                running=metrics["num_requests_running"],
                waiting=metrics["num_requests_waiting"],
                pages_used=metrics["kv_cache_usage_perc"],
                pages_cached=metrics["kv_cache_kept_perc"],
            )
            is_quiet = not (rest.running or rest.waiting or rest.pages_used)
            if is_quiet and (not self.rests or rest.files <= self.rests[0].files):
                return rest
            if time.perf_counter() > until:
                if not is_quiet:
                    self.faults.append(f"not at rest after {_REST_S} s: {rest}")
                return rest
        raise AssertionError("metrics end never")

    async def _metrics(self) -> AsyncIterator[dict[str, float]]:
        while True:
            async with httpx2.AsyncClient(base_url=self.server.url, timeout=_REPLY_S) as http:
                text = (await http.get("/metrics")).text
            await asyncio.sleep(0.3)  # for this connection to be gone
            families = text_string_to_metric_families(text)
            samples = [sample for family in families for sample in family.samples]
            yield {s.name.removeprefix("hybridmoe_"): s.value for s in samples if not s.labels}


def server_arguments(num_slots: int = 4) -> list[str]:
    """Small capacities, so that requests queue up, are preempted, and evict cached pages."""
    return ["--ctx", "512", "--slots", str(num_slots), "--queue", "6", "--kv-tokens", "1024"]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--minutes", default=5.0, show_default=True, help="Length of the run.")
@click.option(
    "--clients", "num_clients", default=8, show_default=True, help="Clients at the same time."
)
@click.option(
    "--slots", "num_slots", default=4, show_default=True, help="Request slots of the server."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the requests.")
def main(minutes: float, num_clients: int, num_slots: int, seed: int) -> None:
    seconds = 60 * minutes
    with served(server_arguments(num_slots)) as server:
        soak = Soak(server, num_clients, seed)
        asyncio.run(soak.run([lambda elapsed_s: elapsed_s >= seconds / 5] * 5))
    soak.check_memory()
    for (name, ended), count in sorted(soak.counts.items()):
        print(f"{name:20} {ended:20} {count:7}")
    for rest in soak.rests:
        print("  ".join(f"{name} {value}" for name, value in asdict(rest).items()))
    for fault in soak.faults[:50]:
        print(f"fault: {fault}")
    total = sum(soak.counts.values())
    print(f"{total} requests, {len(soak.faults)} faults")
    rests = [asdict(rest) for rest in soak.rests]
    about = {"machine": machine(), "minutes": minutes, "clients": num_clients}
    print(json.dumps({**about, "requests": total, "faults": len(soak.faults), "rests": rests}))
    sys.exit(1 if soak.faults else 0)


if __name__ == "__main__":
    main()

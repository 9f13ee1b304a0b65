"""Kill, stop and cut off a worker in mid-answer: no hang, no wrong token, and it comes back.

    python bench/soak_cluster.py                   # 50 faults, 10 minutes
    python bench/soak_cluster.py --faults 6 --seed 7

Rank 0 and a worker hold half of the embedded model's experts each. A worker is killed (SIGKILL) and
started again, stopped (SIGSTOP) and continued, or its cable is pulled and put back: it runs in a
network namespace, whose end of a veth pair goes down. That takes root; without it, both are on
loopback and no cable is pulled. Each fault hits a greedy response after a random number of tokens.
The response must end with one line within 10 s, after tokens that are right; a request meanwhile
must be refused at once; after the worker has come back, the same response must be right. Exits with
1 if anything is wrong.
"""

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hybridmoe
from bench._harness import machine
from hybridmoe.demo import demo_path
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ClusterError

_PROMPT = list(range(40, 60))
_NUM_TOKENS, _MOST_BEFORE = 1500, 60
_MOST_S, _MOST_REFUSAL_S, _MOST_BACK_S = 10.0, 1.0, 120.0
_NAMES = ("hmsoak", "hmsoak0", "hmsoak1")  # namespace, rank 0's end and the worker's
_ADDRESSES = ("10.213.77.1", "10.213.77.2")


class Worker:
    """Process of rank 1, and what is done to it."""

    def __init__(self, address: str, key: Path, namespace: str | None) -> None:
        options = ["--cluster-address", address, "--cluster-key-file", str(key)]
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        self._command = [*inside, sys.executable, "-m", "hybridmoe", "serve", "--expert-parallel"]
        self._command += [*options, "--expert-share", "1,1"]
        self._inside = inside
        self.faults = ("kill", "stop", "cut") if namespace else ("kill", "stop")
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
        self.process = subprocess.Popen(self._command, env=environment, stderr=subprocess.DEVNULL)

    def hit(self, fault: str) -> None:
        if fault == "cut":
            self._link("down")
        else:
            self.process.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)

    def mend(self, fault: str) -> None:
        if fault == "cut":
            self._link("up")
        elif fault == "stop":
            self.process.send_signal(signal.SIGCONT)
        else:
            self.process.wait()
            self.start()

    def _link(self, state: str) -> None:
        subprocess.run([*self._inside, "ip", "link", "set", _NAMES[2], state], check=True)


@contextmanager
def namespace() -> Iterator[str | None]:
    """Make a network namespace and a cable to it; None where that is not allowed."""
    name, own, other = _NAMES
    commands = (
        f"ip netns add {name}",
        f"ip link add {own} type veth peer name {other} netns {name}",
        f"ip addr add {_ADDRESSES[0]}/24 dev {own}",
        f"ip link set {own} up",
        f"ip netns exec {name} ip addr add {_ADDRESSES[1]}/24 dev {other}",
        f"ip netns exec {name} ip link set {other} up",
        f"ip netns exec {name} ip link set lo up",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no network namespace, so no cable is pulled: {error}")
        yield None
        return
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


class Respondent:
    """Greedy responses of rank 0."""

    def __init__(self, llm: hybridmoe.LLM) -> None:
        self._llm = llm

    def start(self, num_tokens: int) -> SimpleQueue[Event]:
        events: SimpleQueue[Event] = SimpleQueue()
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        self._llm.engine.submit(Request(prompt_ids=_PROMPT, params=params), events.put)
        return events

    def respond(self, num_tokens: int) -> list[int]:
        events, ids = self.start(num_tokens), list[int]()
        while not isinstance(event := events.get(timeout=60), Finished):
            if isinstance(event, TokenEvent):
                ids.append(event.token_id)
        assert event.reason == "length", event
        return ids


def hit_once(
    respondent: Respondent, llm: hybridmoe.LLM, worker: Worker, fault: str, before: int,
    right: list[int],
) -> tuple[float, float]:  # fmt: skip
    """Hit a response behind `before` tokens. Returns seconds to its end, and until it is mended."""
    events, ids, hit_s = respondent.start(_NUM_TOKENS), list[int](), 0.0
    while not isinstance(event := events.get(timeout=60), Finished):
        if isinstance(event, TokenEvent):
            ids.append(event.token_id)
            if len(ids) == before:
                worker.hit(fault)
                hit_s = time.monotonic()
    end_s = time.monotonic() - hit_s
    assert event.reason == "error", f"{fault}: the response ended with {event.reason}"
    assert event.error and "\n" not in event.error and "rank 1" in event.error, event.error
    assert ids == right[: len(ids)], f"{fault}: a wrong token behind {before}"
    assert end_s <= _MOST_S, f"{fault}: {end_s:.1f} s until the response ended"
    asked_s = time.monotonic()
    try:
        respondent.respond(5)
        raise AssertionError(f"{fault}: a response without rank 1")
    except ClusterError:
        assert time.monotonic() - asked_s <= _MOST_REFUSAL_S, "a refusal came late"
    worker.mend(fault)
    mended_s = time.monotonic()
    while llm.engine.outage is not None:
        assert time.monotonic() - mended_s < _MOST_BACK_S, f"{fault}: {llm.engine.outage}"
        time.sleep(0.05)
    back_s = time.monotonic() - mended_s
    assert respondent.respond(100) == right[:100], f"{fault}: a wrong token afterwards"
    return end_s, back_s


@click.command()
@click.option("--faults", default=50, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(faults: int, seed: int) -> None:
    """Run the soak."""
    print(machine())
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, namespace() as name:
        key = Path(folder) / "key"
        key.touch(0o600)
        key.write_bytes(rng.randbytes(32).hex().encode())
        with socket.create_server((_ADDRESSES[0] if name else "127.0.0.1", 0)) as free:
            address = "{}:{}".format(*free.getsockname()[:2])
        os.environ.update(RANK="0", WORLD_SIZE="2")
        worker = Worker(address, key, name)
        options = {"cluster_address": address, "cluster_key_file": key, "expert_share": (1, 1)}
        try:
            with hybridmoe.load(demo_path(), device="cpu", expert_parallel=True, **options) as llm:
                respondent = Respondent(llm)
                right = respondent.respond(_NUM_TOKENS)
                found: dict[str, list[tuple[float, float]]] = {f: [] for f in worker.faults}
                for i in range(faults):
                    fault = worker.faults[i % len(worker.faults)]
                    before = rng.randint(1, _MOST_BEFORE)
                    times = hit_once(respondent, llm, worker, fault, before, right)
                    found[fault].append(times)
                    print(f"{i + 1}: {fault} behind {before} tokens: ended after {times[0]:.2f} s,"
                          f" back after {times[1]:.2f} s", flush=True)  # fmt: skip
            assert worker.process.wait(timeout=30) == 0, "the worker did not end in order"
        finally:
            worker.process.kill()
            worker.process.wait()
    for fault, rows in found.items():
        ends, backs = zip(*rows, strict=True)
        print(
            f"{fault}: {len(rows)} times; ended after {statistics.median(ends):.2f} s,"
            f" {max(ends):.2f} at most; back after {statistics.median(backs):.2f} s,"
            f" {max(backs):.2f} at most"
        )


if __name__ == "__main__":
    main()

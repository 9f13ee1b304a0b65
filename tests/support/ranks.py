"""Ranks of a cluster for tests: workers as threads of this process, or as commands."""

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hybridmoe
from hybridmoe.cluster.agreement import Hello
from hybridmoe.cluster.rendezvous import MeetingPlace, find_meeting_place
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.llm.model_config import read_model_config
from hybridmoe.llm.serve_experts import Worker
from hybridmoe.placement.options import LoadOptions

__all__ = ["SHARES", "WorkerThread", "free_port", "hello", "meet", "pooled", "start_worker"]

SHARES = (1.0, 1.0)  # of two equal hosts
_PORTS = range(20000, 32000)


def free_port() -> int:
    """Find a port below those that the system gives to whoever asks for any."""
    while True:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def hello(num_ranks: int = 2) -> Hello:
    """Make what a worker of some cluster says of itself."""
    return Hello(
        protocol=1,
        version="1.0",
        num_ranks=num_ranks,
        file="f" * 64,
        model="m" * 64,
        host="b",
        ram_bytes=1 << 38,
        read_gbs=80.0,
    )


def meet(patch: pytest.MonkeyPatch, num_ranks: int, key: Path | None = None) -> MeetingPlace:
    """Make this process rank 0 of a new cluster."""
    patch.setenv("RANK", "0")
    patch.setenv("WORLD_SIZE", str(num_ranks))
    return find_meeting_place(f"127.0.0.1:{free_port()}", key)


class WorkerThread(threading.Thread):
    """Worker in a thread of this process; `error` is what ended it.

    said: its lines but that it waits for rank 0, which depends on who is ready first.
    """

    def __init__(self, path: Path, place: MeetingPlace, rank: int, **options: Any) -> None:
        super().__init__(daemon=True)
        self._path, self._place = path, replace(place, rank=rank)
        self._options = LoadOptions(expert_parallel=True, **options)
        self.said: list[str] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        with GGUFFile.open(self._path) as file:
            config = read_model_config(file, self._options)
            self.worker = Worker(file, config, self._place, self._options, None, self._say)
            try:
                self.worker.run()
            except hybridmoe.HybridMoeError as error:
                self.error = error

    def _say(self, line: str) -> None:
        if not line.startswith("waiting for rank 0"):
            self.said.append(line)


@contextmanager
def pooled(
    path: Path, place: MeetingPlace, shares: tuple[float, ...], **options: Any
) -> Iterator[hybridmoe.LLM]:
    """Load the model on rank 0."""
    with hybridmoe.load(
        path, expert_parallel=True, cluster_address=str(place), expert_share=shares, **options
    ) as llm:
        yield llm


def start_worker(
    path: Path,
    place: MeetingPlace,
    rank: int,
    *arguments: str,
    num_threads: int = 1,
    before: tuple[str, ...] = (),
) -> "subprocess.Popen[str]":
    """Start a worker as torchrun does. before: a command that runs it."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(place.num_ranks),
        "HYBRIDMOE_THREADS": str(num_threads),
        "HYBRIDMOE_PIN": "0",
    }
    more = ("--cluster-address", str(place), "--expert-share", "1,1", *arguments)
    return subprocess.Popen(
        [
            *before,
            sys.executable,
            "-m",
            "hybridmoe",
            "serve",
            str(path),
            "--expert-parallel",
            *more,
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )

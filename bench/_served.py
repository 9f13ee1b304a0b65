"""Servers in processes of their own, for benchmarks over HTTP."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

__all__ = ["Served", "peer_served", "served"]

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 300  # to start, to reply and to end: what takes longer hangs

# llama-cpp-python 0.3.36 aborts on AMX machines unless `use_extra_bufts` is off (_llama_cpp.py),
# and its server has no option for that.
_PEER = """
import runpy, sys
import llama_cpp.llama_cpp as api
defaults = api.llama_model_default_params
def without_extra_bufts():
    params = defaults()
    params.use_extra_bufts = False
    return params
api.llama_model_default_params = without_extra_bufts
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    pid: int
    log: Path  # what it writes on stderr; gone when it has ended


@contextlib.contextmanager
def served(arguments: Sequence[str]) -> Iterator[Served]:
    """`hybridmoe serve` with these arguments, once its model is loaded."""
    port = _free_port()
    command = [sys.executable, "-m", "hybridmoe", "serve", "--port", str(port), *arguments]
    with _process(command, port, "/health") as server:
        yield server


@contextlib.contextmanager
def peer_served(path: Path, context_tokens: int, num_threads: int) -> Iterator[Served]:
    """llama-cpp-python's own server on the same file and threads."""
    port = _free_port()
    arguments = {
        "--model": str(path), "--port": str(port), "--n_ctx": str(context_tokens),
        "--n_threads": str(num_threads), "--n_threads_batch": str(num_threads),
        "--n_gpu_layers": "0", "--verbose": "false", "--interrupt_requests": "false",
    }  # fmt: skip
    command = [sys.executable, "-c", _PEER]
    command += [part for pair in arguments.items() for part in pair]
    with _process(command, port, "/v1/models") as server:
        yield server


@contextlib.contextmanager
def _process(command: Sequence[str], port: int, path: str) -> Iterator[Served]:
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w") as log:  # an unread pipe fills up
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=log)
        try:
            _await(process, url + path, Path(log.name))
            yield Served(url, process.pid, Path(log.name))
        finally:
            process.terminate()
            process.wait(_START_S)


def _await(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the server ended with {process.returncode}: {said[-500:]}")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(url, timeout=_START_S).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no reply from {url} in {_START_S} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Commands under torchrun: rank 0 runs them, every other rank computes experts for it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hybridmoe
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.signals import ENDING, die_of, handled
from hybridmoe.placement.options import LoadOptions

__all__ = ["has_served_experts"]

_HANDLER_S = 2.0  # more than a wait for a beat


def has_served_experts(path: Path | None, options: LoadOptions) -> bool:
    """Compute experts until rank 0 ends, where this process is a worker; else return False.

    Errors: those of `hybridmoe.serve_experts`.
    """
    if not options.expert_parallel:
        return False
    # torch logs a stack where another host is away or a stranger connects; ours is one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from hybridmoe.cluster.rendezvous import find_rank  # imports torch

    if find_rank() == 0:
        return False
    with handled(ENDING, die_of), _deadline_of_signals(), ProgressBar() as bar:
        hybridmoe.serve_experts(path, options, progress=bar, report=_say)
    return True


@contextmanager
def _deadline_of_signals() -> Iterator[None]:
    """End the process where a signal's handler is late: native code may have the main thread.

    Nothing is to be saved. The default action would not do: process 1 of a container has none.
    """
    reading, writing = os.pipe()

    def wait() -> None:
        if numbers := os.read(reading, 1):
            time.sleep(_HANDLER_S)
            os._exit(128 + numbers[0])

    thread = threading.Thread(target=wait, name="hybridmoe-signals", daemon=True)
    thread.start()
    os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writing)
        thread.join()
        os.close(reading)


def _say(line: str) -> None:
    print(f"hybridmoe: {line}", file=sys.stderr, flush=True)

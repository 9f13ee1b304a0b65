"""Commands under torchrun: rank 0 runs them, every other rank computes experts for it."""

import os
import signal
import sys
from pathlib import Path

import hybridmoe
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.placement.options import LoadOptions

__all__ = ["has_served_experts"]


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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # nothing is to be saved; native code may be waiting
    with ProgressBar() as bar:
        hybridmoe.serve_experts(path, options, progress=bar, report=_say)
    return True


def _say(line: str) -> None:
    print(f"hybridmoe: {line}", file=sys.stderr, flush=True)

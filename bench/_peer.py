"""Another program that runs the same file, driven from outside: its speeds, parsed.

The program is called as `COMMAND MODEL hybrid THREADS PROMPT,PROMPT,... DECODED 0 MICRO_BATCH`, and
prints for each prompt a line such as

    ... prompt 512: 1268.3 tok/s, decode after 47.92 tok/s (median of 32)
"""

import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

__all__ = ["PeerSpeed", "best_of", "measure_peer", "parse_command", "parse_speeds"]

_LINE = re.compile(r"\bprompt (\d+): ([\d.]+) tok/s, decode after ([\d.]+) tok/s")
_MICRO_BATCHES = (2048, 512)  # with all threads, and with one left to its driver
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class PeerSpeed:
    """Speed of a prompt and of the tokens decoded after it, in one setting; tokens/s."""

    num_threads: int
    micro_batch: int
    prompt_tokens: int
    prompt: float
    decode: float


def parse_command(text: str) -> list[str]:
    """Split a command as a shell does. Errors: ClickException."""
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise click.ClickException(f"--peer {text!r:.60}: {error}") from None
    if not command:
        raise click.ClickException("--peer: expected a program and its first arguments")
    return command


def measure_peer(
    command: Sequence[str],
    model: Path,
    *,
    num_threads: int,
    prompts: Sequence[int],
    num_decode: int,
) -> list[dict[str, Any]]:
    """Run the program in its two usual settings; `PeerSpeed`s as dicts. Errors: ClickException."""
    speeds = []
    for threads, micro_batch in zip(
        (num_threads, max(1, num_threads - 1)), _MICRO_BATCHES, strict=True
    ):
        arguments = (
            model, "hybrid", threads, ",".join(map(str, prompts)), num_decode, 0, micro_batch
        )  # fmt: skip
        output = _output([*command, *map(str, arguments)])
        speeds += parse_speeds(output, threads, micro_batch, prompts)
    return [asdict(speed) for speed in speeds]


def parse_speeds(
    output: str, num_threads: int, micro_batch: int, prompts: Iterable[int]
) -> list[PeerSpeed]:
    """Read a run's output. Errors: ClickException where a prompt is missing."""
    found = {
        int(match[1]): PeerSpeed(
            num_threads, micro_batch, int(match[1]), float(match[2]), float(match[3])
        )
        for match in _LINE.finditer(output)
    }
    for num_tokens in prompts:
        if num_tokens not in found:
            raise click.ClickException(
                f"the peer printed no speed of a prompt of {num_tokens}; its last line:"
                f" {_last_line(output)}"
            )
    return [found[num_tokens] for num_tokens in prompts]


def best_of(speeds: Iterable[PeerSpeed]) -> tuple[dict[int, float], float]:
    """Select the best speed of each prompt, and of decode, over all settings."""
    prompts: dict[int, float] = {}
    decode = 0.0
    for speed in speeds:
        prompts[speed.prompt_tokens] = max(speed.prompt, prompts.get(speed.prompt_tokens, 0.0))
        decode = max(speed.decode, decode)
    return prompts, decode


def _output(arguments: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise click.ClickException(f"the peer cannot run: {error}") from None
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"the peer did not end in {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = _last_line(done.stderr) or _last_line(done.stdout)
        raise click.ClickException(f"the peer ended with {done.returncode}: {said}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""

"""Kill processes that write a KV cache to disk, at random moments: no token may ever be wrong.

    python bench/soak_kv_disk.py                    # 200 kills, one or two processes at a time
    python bench/soak_kv_disk.py --kills 20 --seed 7

Each round forks one or two processes on the same folder. They respond to prompts with shared
prefixes from a model whose next token depends on all rows of the KV cache, check every row that
they get from it, and are killed (SIGKILL) a random time after their first response. Files are
written in pieces with pauses, so that many kills hit a half-written one. The folder holds less than
the prompts need, so that pages are evicted all the time. No process may find a damaged page. Every
tenth round, and at the end, one runs to its end: some tokens must have been read from disk, and the
folder be within its limit. Exits with 1 if anything is wrong.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hash_model import MODEL, VOCAB, HashModel
from hash_run import HashRun

from bench._harness import machine
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk_files import page_files
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span

_PAGE_BYTES = 48 + PAGE_TOKENS * (4 + MODEL.num_layers * MODEL.latent_dim * 4)
_LIMIT_BYTES = 40 * _PAGE_BYTES
_NUM_PROMPTS = 12  # of up to 9 pages each: more than the limit
_MOST_TOKENS = 600
_MOST_S = 0.3  # from the first response to the kill
_PIECE_BYTES, _PIECE_S = 32 << 10, 0.0003  # of a file; pause behind each
_EVERY = 10  # rounds between two that run to their end


class CheckedModel(HashModel):
    """Fills whole rows in all layers, and checks those of a span's prefix."""

    def __init__(self, cache: KvCache) -> None:
        super().__init__(cache)
        self._rows = cache.parts[0].view(torch.float32)  # (layers, pages, PAGE_TOKENS, dim)

    def forward(self, ids: list[int], spans: list[Span], *rest: Any) -> torch.Tensor:
        for span in spans:
            rows = self._of(span, range(span.start))
            assert bool((rows == rows[:1, :, :1]).all()), "a row is damaged"
        states = super().forward(ids, spans, *rest)
        for span in spans:
            at = range(span.start, span.start + span.num_tokens)
            rows = self._of(span, at)
            pages, offsets = self._index(span, at)
            self._rows[:, pages, offsets] = rows[:1, :, :1].expand_as(rows)
        return states

    def _of(self, span: Span, positions: Sequence[int]) -> torch.Tensor:
        pages, offsets = self._index(span, positions)
        return self._rows[:, pages, offsets]  # (layers, T, dim)

    @staticmethod
    def _index(span: Span, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        pages = [span.pages[position // PAGE_TOKENS] for position in positions]
        return pages, [position % PAGE_TOKENS for position in positions]


class _SlowFile:
    """File that is written piece by piece, so that kills hit it half-written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        data = memoryview(data).cast("B")
        for start in range(0, len(data), _PIECE_BYTES):
            self._file.write(data[start : start + _PIECE_BYTES])
            self._file.flush()
            time.sleep(_PIECE_S)


def _write_slowly() -> None:
    """Let all files of this process be written slowly."""
    open_file: Any = os.fdopen

    def fdopen(fd: int, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = open_file(fd, mode, *args, **options)
        return _SlowFile(file) if mode == "wb" else file

    os.fdopen = fdopen


def _prompts() -> list[list[int]]:
    """Prompts in pairs that share their first 200 tokens."""
    rng = random.Random(1)
    firsts = [rng.choices(range(VOCAB), k=200) for _ in range(_NUM_PROMPTS // 2)]
    rests = [rng.choices(range(VOCAB), k=_MOST_TOKENS - 200) for _ in range(_NUM_PROMPTS)]
    return [[*firsts[i // 2], *rest] for i, rest in enumerate(rests)]


def _respond(folder: Path, seed: int, pipe: int, num_responses: int | None) -> None:
    """Respond to random prompts, and report the tokens read from disk; without end by default."""
    rng, prompts = random.Random(seed), _prompts()
    run = HashRun(folder, _LIMIT_BYTES, num_tokens=1024, make_model=CheckedModel)
    count = 0
    while num_responses is None or count < num_responses:
        prompt = rng.choice(prompts)[: rng.randrange(100, _MOST_TOKENS)]
        usage = run.respond(prompt, rng.randrange(1, 40))
        os.write(pipe, f"{usage.disk_tokens}\n".encode())
        count += 1
        assert run.disk.stats().errors == 0, run.disk.stats()
    stats = run.close()
    assert stats.num_bytes <= _LIMIT_BYTES, stats


class _Child:
    """A forked process that responds to prompts."""

    def __init__(self, folder: Path, seed: int, num_responses: int | None = None) -> None:
        self._pipe, theirs = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                torch.set_num_threads(1)
                _write_slowly()
                _respond(folder, seed, theirs, num_responses)
                os._exit(0)
            except BaseException as error:
                print(f"wrong: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        os.close(theirs)
        self._read = b""

    def wait_for_response(self) -> None:
        self._read += os.read(self._pipe, 1 << 16)

    def end(self, *, must_kill: bool) -> tuple[int, int, int]:
        """Kill, or wait. Returns the signal or code that ended it, responses, tokens from disk."""
        if must_kill:
            os.kill(self.process, signal.SIGKILL)
        while data := os.read(self._pipe, 1 << 16):
            self._read += data
        os.close(self._pipe)
        _, status = os.waitpid(self.process, 0)
        tokens = [int(line) for line in self._read.split(b"\n")[:-1]]
        return os.waitstatus_to_exitcode(status), len(tokens), sum(tokens)


def soak(folder: Path, num_kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill that many processes. Returns counts, and what was wrong."""
    rng = random.Random(seed)
    counts, faults = Counter[str](), list[str]()

    def note(ended: tuple[int, int, int], wanted: int) -> None:
        code, responses, tokens = ended
        counts["responses"] += responses
        counts["tokens from disk"] += tokens
        if code != wanted:
            faults.append(f"after {counts['kills']} kills: a process ended with {code}")

    halves = set[str]()
    number = 0
    while counts["kills"] < num_kills:
        number += 1
        children = [_Child(folder, rng.randrange(1 << 30)) for _ in range(1 + number % 2)]
        for child in children:
            child.wait_for_response()
        for child in children:
            time.sleep(rng.random() ** 2 * _MOST_S)
            note(child.end(must_kill=True), -signal.SIGKILL)
            counts["kills"] += 1
        halves.update(f.path for f in page_files(folder) if f.path.endswith(".tmp"))
        if number % _EVERY == 0 or counts["kills"] >= num_kills:
            before = counts["tokens from disk"]
            note(_Child(folder, number, 2 * _NUM_PROMPTS).end(must_kill=False), 0)
            size = sum(file.num_bytes for file in page_files(folder))
            if size > _LIMIT_BYTES:
                faults.append(f"after {counts['kills']} kills: {size} bytes in the folder")
            if counts["tokens from disk"] == before:
                faults.append(f"after {counts['kills']} kills: nothing was read from disk")
    counts["half-written files"] = len(halves)
    return counts, faults


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(kills: int, seed: int) -> None:
    """Print counts; the last line is JSON."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = soak(Path(folder), kills, seed)
    seconds = time.monotonic() - started
    for name, count in counts.items():
        print(f"{count:10} {name}")
    for fault in faults:
        print(f"wrong: {fault}")
    about = {"machine": machine(), "seconds": round(seconds), **counts, "faults": faults}
    print(json.dumps(about))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

"""Second start of an agent: time to the first token with the KV cache on disk (--kv-disk).

    python bench/bench_kv_disk.py                         # some minutes; 30 000 tokens
    python bench/bench_kv_disk.py --tokens 8000 --only agent --only peer  # beside llama.cpp
    python bench/bench_kv_disk.py --only pages            # Kimi K2's pages alone

*agent*: the embedded model (its file with a longer context; speed does not depend on the text)
reads a prompt of that many tokens in a new process, and generates a token. A second process gets
the same prompt with another question of 40 tokens behind it. Both times are from the request to the
first token, without the load; the system's page cache is emptied of the pages between them.

*pages*: Kimi K2's pages, 70 KB a token in 61 layers, without a model: written behind as a prompt
would fill them, then read by a fresh cache. That is the whole cost of a second start with Kimi K2
but for its last tokens; computing a prompt of 30 000 tokens takes it minutes. Limits: the rates of
plain files of the same size, one after the other.

*peer*: llama.cpp saves and restores the state of a sequence of the same model
(`llama_state_seq_save_file`, as llama-server's slot save does), in gigabytes a second.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import gguf
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from k2_config import K2

import hybridmoe
from bench._harness import Row, print_report
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.kv_cache import BlockTable, KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.kv_disk_files import page_files
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.sequence import Sequence
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.option import FolderLimit
from hybridmoe.planning.kv_plan import plan_kv

_BAR = 20.0  # times sooner
_QUESTION_TOKENS = 40
_LIMIT_BYTES = 20 << 30
_VOCAB = 1000  # of the embedded model's ordinary tokens, about


def _long_model(folder: Path, num_tokens: int) -> Path:
    """Copy the embedded model, with a context of that many tokens."""
    path = folder / "long.gguf"
    path.write_bytes(demo_path().read_bytes())
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["deepseek2.context_length"]
    field.parts[field.data[0]][0] = num_tokens
    reader.data.flush()
    return path


def _prompt(num_tokens: int, question: int) -> list[int]:
    ids = [300 + i * i % 7919 % _VOCAB for i in range(num_tokens)]
    return [*ids, *((300 + question * 31 + i) % _VOCAB for i in range(_QUESTION_TOKENS))]


def _child(path: str, folder: str, num_tokens: int, question: int) -> None:
    """Load the model, run one prompt, print its time to the first token."""
    started = time.perf_counter()
    options: dict[str, Any] = {"device": "cpu", "kv_disk": (Path(folder), _LIMIT_BYTES)}
    with hybridmoe.load(path, max_running=1, **options) as llm:
        load_s = time.perf_counter() - started
        events: SimpleQueue[Event] = SimpleQueue()
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        started = time.perf_counter()
        prompt = _prompt(num_tokens, question)
        llm.engine.submit(Request(prompt_ids=prompt, params=params), events.put)
        while not isinstance(event := events.get(), TokenEvent):
            assert not isinstance(event, Finished), event
        first_s = time.perf_counter() - started
        usage = event.usage
    print(json.dumps({"load_s": load_s, "first_s": first_s, "disk": usage.disk_tokens}))


def _start(path: Path, folder: Path, num_tokens: int, question: int) -> dict[str, Any]:
    arguments = ["--child", str(path), str(folder), str(num_tokens), str(question)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _empty_page_cache(folder: Path) -> int:
    """Drop the files of a folder from the system's page cache. Returns their bytes."""
    size = 0
    for file in page_files(folder):
        fd = os.open(file.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        size += file.num_bytes
    return size


def _agent(folder: Path, num_tokens: int) -> list[Row]:
    path = _long_model(folder, num_tokens + 2 * _QUESTION_TOKENS)
    pages = folder / "kv"
    cold = _start(path, pages, num_tokens, 1)
    size = _empty_page_cache(pages)
    warm = _start(path, pages, num_tokens, 2)
    assert cold["disk"] == 0 and warm["disk"] == num_tokens, warm
    times = cold["first_s"] / warm["first_s"]
    seconds = f"{cold['first_s']:.1f} s, then {warm['first_s']:.2f} s"
    note = (
        f"{num_tokens} tokens: {seconds}; {size / 1e6:.0f} MB on disk; load {warm['load_s']:.1f} s"
    )
    return [Row("agent: first token of a second start", times, "x", bar=_BAR, note=note)]


def _pages(folder: Path, num_tokens: int) -> list[Row]:
    num_tokens = num_tokens // PAGE_TOKENS * PAGE_TOKENS
    model = ModelConfig.from_metadata(K2)
    config = EngineConfig(context_tokens=num_tokens + 1, kv_tokens=num_tokens + 1)
    limit = FolderLimit(folder / "k2", _LIMIT_BYTES)
    request = Request(
        prompt_ids=[*_prompt(num_tokens, 0), 0][: num_tokens + 1], params=SamplingParams()
    )

    def opened() -> tuple[KvCache, KvDisk, Sequence]:
        cache = KvCache(model, plan_kv(model, config, 0))
        for part in cache.parts:
            part.zero_()  # the system commits the memory
        disk = KvDisk(limit, cache, "bench", lambda: None)
        sequence = Sequence(request, lambda event: None, model.vocab_size, num_tokens + 1)
        table = BlockTable()
        assert cache.grow(table, num_tokens + 1)
        sequence.start(table)
        return cache, disk, sequence

    cache, disk, sequence = opened()
    disk.start(sequence, may_read=False)
    copy_s, started = 0.0, time.perf_counter()
    for end in range(PAGE_TOKENS, num_tokens + 1, PAGE_TOKENS):
        cache.parts[0][:, sequence.block_table.pages[end // PAGE_TOKENS - 1]] = end % 251
        sequence.num_computed = end
        cache.share_full_pages(sequence.block_table, sequence.ids, end)
        if end % (16 * PAGE_TOKENS) == 0:
            disk.flush(600)  # a model is slower than the disk
        before = time.thread_time()
        disk.offer(sequence)
        copy_s += time.thread_time() - before
    assert disk.flush(600)
    write_s = time.perf_counter() - started
    stats = disk.stats()
    disk.close()
    num_pages = num_tokens // PAGE_TOKENS
    assert (stats.written_pages, stats.dropped_pages, stats.errors) == (num_pages, 0, 0), stats
    wanted = [cache.parts[0][-1, page, -1, -1].item() for page in sequence.block_table.pages]
    del cache
    _empty_page_cache(limit.path)
    cache, disk, sequence = opened()
    started = time.perf_counter()
    disk.start(sequence, may_read=True)
    while sequence.is_loading:
        if not disk.receive(sequence):
            time.sleep(0.0002)
    read_s = time.perf_counter() - started
    assert sequence.num_computed == num_tokens, sequence.num_computed
    found = [cache.parts[0][-1, page, -1, -1].item() for page in sequence.block_table.pages]
    assert found[:num_pages] == wanted[:num_pages]
    disk.close()
    gigabytes = stats.written_bytes / 1e9
    plain = _plain_rates(folder, stats.written_bytes // num_pages, num_pages)
    copy_ms = 1e3 * copy_s / num_pages
    return [
        Row("pages: Kimi K2's, written", gigabytes / write_s, "GB/s", limit=plain[0],
            note=f"{gigabytes:.2f} GB; the engine's thread needs {copy_ms:.2f} ms a page"),
        Row("pages: Kimi K2's, read", gigabytes / read_s, "GB/s", limit=plain[1],
            note=f"{num_tokens} tokens in {read_s:.2f} s"),
    ]  # fmt: skip


def _plain_rates(folder: Path, num_bytes: int, num_files: int) -> tuple[float, float]:
    """Rates of writing files of a page's size one after the other, and of reading them, GB/s."""
    data = bytearray(os.urandom(num_bytes))
    paths = [folder / f"plain-{i}" for i in range(num_files)]

    def write() -> None:
        for path in paths:
            with path.open("wb", buffering=0) as file:
                file.write(data)
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                file.readinto(data)

    seconds = _seconds(write), _seconds(read)
    for path in paths:
        path.unlink()
    return tuple(num_bytes * num_files / one / 1e9 for one in seconds)  # type: ignore[return-value]


def _peer(folder: Path, num_tokens: int) -> list[Row]:
    from bench._llama_cpp import LlamaCpp

    path, file = _long_model(folder, num_tokens + _QUESTION_TOKENS), folder / "slot.bin"
    ids = _prompt(num_tokens, 0)[:num_tokens]
    with LlamaCpp(path, context_tokens=num_tokens + _QUESTION_TOKENS) as llama:
        llama.step(ids)
        save_s = _seconds(lambda: llama.save(file, ids))
        with file.open("rb") as saved:
            os.fsync(saved.fileno())
            os.posix_fadvise(saved.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        llama.reset()
        restore_s = _seconds(lambda: llama.restore(file, num_tokens))
    size = file.stat().st_size
    return [
        Row(f"peer: llama.cpp {what}", size / seconds / 1e9, "GB/s",
            note=f"{size / num_tokens:.0f} bytes a token, {seconds:.2f} s")
        for what, seconds in (("saves", save_s), ("restores", restore_s))
    ]  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@click.command()
@click.option("--tokens", default=30_000, show_default=True)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(("agent", "pages", "peer")),
    default=("agent", "pages"),
    show_default=True,
    help="Repeatable",
)
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to measure")
@click.option("--out", type=click.Path(path_type=Path), help="File for the JSON")
def main(tokens: int, only: tuple[str, ...], folder: Path | None, out: Path | None) -> None:
    """Print the table; the last line is JSON."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, measure in {"agent": _agent, "pages": _pages, "peer": _peer}.items():
            if name in only:
                rows += measure(Path(temporary), tokens)
    print_report(rows, out=out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()

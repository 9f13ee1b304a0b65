"""KV cache on disk: the same bits in another engine, within its limit."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_run import MakeEngine, Running, request, run
from hash_model import MODEL
from hash_run import IDS, PAGE_BYTES, HashRun, computed, files

from hybridmoe.config import EngineConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.engine.kv_disk_files import PageFolder, chain_hash, page_files
from hybridmoe.engine.kv_rows import RowLayout
from hybridmoe.errors import ConfigError
from hybridmoe.option import FolderLimit


@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_a_second_engine_gives_the_same_bits_without_a_prefill(
    make: MakeEngine, tmp_path: Path, kv_type: str
) -> None:
    options = {"kv_disk": f"{tmp_path / 'made' / 'kv'}=1GiB", "kv_type": kv_type}
    ids = [i * 7 % 250 for i in range(150)]
    first = make(**options)
    (cold,) = run(first, request(ids, 30, top_logprobs=5))
    assert cold.end.usage.disk_tokens == 0
    first.close()
    second = make(**options)
    (warm,) = run(second, request(ids, 30, top_logprobs=5))
    assert warm.end.usage.cached_tokens == warm.end.usage.disk_tokens == 149
    assert warm.progress[-1].cached_tokens == 149
    assert [(t.token_id, t.logprob, t.top) for t in warm.tokens] == [
        (t.token_id, t.logprob, t.top) for t in cold.tokens
    ]
    stats = second.stats()
    assert stats.cached_tokens == 149 and stats.prompt_tokens == 1
    assert stats.kv_disk is not None and stats.kv_disk.loaded_tokens == 149
    longer = [*ids, *cold.ids]  # the conversation goes on: the response was written, too
    (third,) = run(make(**options), request(longer, 1))
    assert third.end.usage.disk_tokens == len(longer) - 1


@pytest.mark.parametrize("num_common", [0, 1, 64, 100, 128, 290, 299])
def test_a_prefix_is_found_up_to_its_last_token(tmp_path: Path, num_common: int) -> None:
    computed(tmp_path)
    other = [*IDS[:num_common], *((i + 1) % 3 for i in IDS[num_common:])]
    again = HashRun(tmp_path)
    assert again.respond(other).cached_tokens == num_common
    assert again.respond(other).cached_tokens == 299  # in memory now
    again.close()


def test_what_is_in_memory_is_not_read_and_what_is_on_disk_is_not_written_again(
    tmp_path: Path,
) -> None:
    computed(tmp_path, IDS[:200])
    again = HashRun(tmp_path)
    usage = again.respond(IDS[:130], 1)
    assert (usage.cached_tokens, usage.disk_tokens) == (129, 129)
    usage = again.respond(IDS, 1)
    assert (usage.cached_tokens, usage.disk_tokens) == (200, 70)
    stats = again.close()
    assert stats.written_pages == 3  # the third of 130 tokens, the fourth, the fifth of 300
    assert stats.num_bytes == sum(path.stat().st_size for path in files(tmp_path))


@pytest.mark.parametrize("other", [{"model": "other"}, {"devices": [CpuDevice(), CpuDevice()]}])
def test_pages_are_of_one_model_but_of_any_device(tmp_path: Path, other: dict[str, Any]) -> None:
    computed(tmp_path)
    again = HashRun(tmp_path, **other)
    assert again.respond(IDS).disk_tokens == (0 if "model" in other else 299)
    again.close()


def test_pages_of_gpus_are_kept_too(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from two_gpus import two_devices

    for expected in (0, 299):
        gpus = HashRun(tmp_path, devices=two_devices(), kv_type="f16")
        assert gpus.respond(IDS).disk_tokens == expected
        gpus.close()


def held(folder: Path, ids: Sequence[int]) -> int:
    """Number of pages on disk from the first on."""
    pages = PageFolder(folder, "hash f32 2 2304", RowLayout.of(MODEL, "f32"))
    parent, num_pages = pages.root_hash, 0
    while pages.read(parent, page := ids[num_pages * 64 : num_pages * 64 + 64]) is not None:
        parent, num_pages = chain_hash(parent, page), num_pages + 1
    return num_pages


def test_the_least_recently_used_pages_go_and_of_a_sequence_the_last(tmp_path: Path) -> None:
    limit = 12 * PAGE_BYTES
    run = HashRun(tmp_path, limit, num_tokens=2048)  # all pages stay in memory
    prompts = [[i % 3, *IDS[:255]] for i in range(3)]
    for prompt in [*prompts, prompts[0]]:  # four pages each
        run.respond(prompt, 1)
        assert run.disk.flush(60)
    assert [held(tmp_path, prompt) for prompt in prompts] == [4, 4, 4]
    run.respond(IDS[::-1], 1)
    stats = run.close()
    assert stats.num_bytes <= limit and stats.evicted_pages > 0
    assert stats.num_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert held(tmp_path, IDS[::-1]) == 5 and held(tmp_path, prompts[0]) == 4
    assert held(tmp_path, prompts[1]) == 0 < held(tmp_path, prompts[2]) < 4


def test_of_a_sequence_above_the_limit_the_first_pages_stay(tmp_path: Path) -> None:
    run = HashRun(tmp_path, 5 * PAGE_BYTES)
    for _ in range(2):
        run.respond(IDS * 3, 1)
        assert run.disk.flush(60)
    stats = run.close()
    assert stats.num_bytes <= 5 * PAGE_BYTES and stats.dropped_pages > 0
    assert held(tmp_path, IDS * 3) >= 4


def test_a_folder_above_its_limit_shrinks_at_the_start(tmp_path: Path) -> None:
    computed(tmp_path)
    stale = files(tmp_path)[0].with_name("0" * 32 + "-" + "1" * 32 + ".0123abcd.tmp")
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(bytes(1 << 20))
    run = HashRun(tmp_path, 2 * PAGE_BYTES)
    assert run.disk.flush(60)
    assert run.close().num_bytes <= 2 * PAGE_BYTES
    left = files(tmp_path)
    assert foreign in left and stale not in left
    left.remove(foreign)
    assert sum(path.stat().st_size for path in left) <= 2 * PAGE_BYTES


def test_the_files_are_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    computed(folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(folder)} == {0o600}
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_two_engines_share_a_folder(make: MakeEngine, tmp_path: Path) -> None:
    engines = [make(kv_disk=f"{tmp_path}=1GiB") for _ in range(2)]
    requests = [request([*range(100), *range(i, i + 80)], 10) for i in range(12)]
    plain = [response.ids for response in run(make(), *requests)]
    runs = [[Running(engine, r) for r in requests] for engine in engines]
    for running in runs:
        assert [one.wait().ids for one in running] == plain
    for engine in engines:
        engine.close()
        stats = engine.stats().kv_disk
        assert stats is not None and stats.errors == 0
    assert len({file.path for file in page_files(tmp_path)}) == len(files(tmp_path)) > 12


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("folder", "expected a folder and its size, such as DIR=20GiB"),
        ("=20GiB", "expected a folder and its size"),
        ("folder=much", "expected a size such as 12GiB"),
        ("folder=0", "expected a size of 1 byte or more"),
        (5, "expected a folder and its size"),
    ],
)
def test_unusable_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^kv_disk=.*{message}"):
        EngineConfig(context_tokens=10, kv_disk=value)


def test_a_folder_is_a_path_and_bytes(make: MakeEngine, tmp_path: Path) -> None:
    config = EngineConfig(context_tokens=10, kv_disk="a=b=2KiB")  # type: ignore[arg-type]
    assert config.kv_disk == FolderLimit(Path("a=b"), 2048)
    assert EngineConfig(context_tokens=10, kv_disk=config.kv_disk).kv_disk == config.kv_disk
    with pytest.raises(ConfigError, match=r"expected at least .*KiB, two pages of 64 tokens$"):
        make(kv_disk=(tmp_path, 1024))

"""KV cache snapshots: round trip, conversion, and refusal of damaged files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from engine_run import MakeEngine, request, run
from k2_config import K2

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.kv_cache import BlockTable, KvCache
from hybridmoe.engine.kv_snapshot import restore_snapshot, save_snapshot
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import convert_rows
from hybridmoe.planning.kv_plan import plan_kv

LATENT_DIM = 512 + 64  # of the tiny model
LAYERS_3 = ModelConfig.from_metadata(K2 | {"deepseek2.block_count": 3})
IDS = [i * 7 % 250 for i in range(150)]


@pytest.fixture
def saved(make: MakeEngine, tmp_path: Path) -> Iterator[tuple[Path, list[int]]]:
    """A snapshot, and the continuation of its sequence."""
    engine = make()
    (response,) = run(engine, request(IDS, 20))
    whole = [*IDS, *response.ids]
    path = tmp_path / "sequence.kv"
    assert engine.save(path, whole, "model") == len(whole) - 1  # the last was not computed
    yield path, run(engine, request(whole, 30))[0].ids


def test_a_saved_sequence_goes_on_without_a_prefill(
    make: MakeEngine, saved: tuple[Path, list[int]]
) -> None:
    path, expected = saved
    engine = make()
    ids = engine.restore(path, "model")
    assert ids[:150] == IDS
    (response,) = run(make(), request([*ids, 0], 1))
    assert response.end.usage.cached_tokens == 0
    before = engine.stats().kv_pages_used
    last = run(make(), request(ids, 1))[0].ids  # follows the saved ones
    (response,) = run(engine, request([*ids, *last], 30))
    assert response.end.usage.cached_tokens == len(ids) == 169
    assert response.ids == expected
    assert engine.stats().kv_pages_used == before == 0


@pytest.mark.parametrize(
    ("saved_type", "wanted", "loss"),  # of a row's greatest number
    [
        ("bf16", "f16", 2.0**-25),
        ("f16", "f32", 0),
        ("f16", "int8", 0.51 / 127),
        ("int8", "f16", 2.0**-11),
    ],
)
def test_a_file_of_another_type_is_converted(
    make: MakeEngine, tmp_path: Path, saved_type: str, wanted: str, loss: float
) -> None:
    """Older files are bf16; f16 holds all of its bits, down to the subnormals."""
    path, again = tmp_path / "sequence.kv", tmp_path / "again.kv"
    first = make(kv_type=saved_type)
    (response,) = run(first, request(IDS, 20))
    first.save(path, [*IDS, *response.ids], "model")
    engine = make(kv_type=wanted)
    ids = engine.restore(path, "model")
    assert ids == [*IDS, *response.ids][:-1]
    engine.save(again, ids, "model")
    old, new = latents(path, saved_type, len(ids)), latents(again, wanted, len(ids))
    assert old.any() and new.shape == old.shape
    assert ((new - old).abs() <= loss * old.abs().amax(-1, keepdim=True)).all()
    assert run(engine, request([*ids, 0], 1))[0].end.usage.cached_tokens == len(ids)


def latents(path: Path, kv_type: str, num_tokens: int) -> torch.Tensor:
    """A file's, as float32 (layers x tokens, numbers)."""
    data = path.read_bytes()
    header = json.loads(data[12 : 12 + int.from_bytes(data[8:12], "little")])
    assert header["kv_type"] == kv_type and header["num_tokens"] == num_tokens
    body = bytearray(data[-header["num_layers"] * num_tokens * header["row_bytes"] :])
    rows = torch.frombuffer(body, dtype=torch.uint8).view(-1, header["row_bytes"])
    return convert_rows(rows, kv_type, "f32", LATENT_DIM).view(torch.float32)


@pytest.mark.parametrize(
    ("options", "fingerprint", "message"),
    [
        ({}, "another", "of another model: fingerprint is 'model', expected 'another'"),
        ({"context_tokens": 128, "kv_tokens": 128}, "model", "holds at most 128"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    make: MakeEngine,
    saved: tuple[Path, list[int]],
    options: dict[str, object],
    fingerprint: str,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options).restore(saved[0], fingerprint)


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _header(**changes: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        size = int.from_bytes(data[8:12], "little")
        header = json.dumps(json.loads(data[12 : 12 + size]) | changes).encode()
        return data[:8] + len(header).to_bytes(4, "little") + header + data[12 + size :]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:11],
        lambda data: data[:60],
        lambda data: data[:-1],
        lambda data: data + b"x",
        _flip(0),
        _flip(9),
        _flip(-1000),
        lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:],
        lambda data: data[:8] + b"\x02\x00\x00\x00[]" + data[14:],
        _header(num_tokens=-1),
        _header(num_tokens=1 << 60),
        _header(num_tokens=True),
        _header(num_tokens=168),
        _header(row_bytes=4),
        _header(kv_type="f64"),
        _header(kv_type=["f16"]),
        _header(kv_type="f32"),
        _header(sha256=""),
    ],
)
def test_a_damaged_file_is_one_line_and_leaves_no_trace(
    make: MakeEngine, saved: tuple[Path, list[int]], damage: Callable[[bytes], bytes]
) -> None:
    path, _ = saved
    path.write_bytes(damage(path.read_bytes()))
    engine: Engine = make()
    with pytest.raises(ConfigError, match=r"^sequence\.kv[^\n]*$"):
        engine.restore(path, "model")
    assert engine.stats().kv_pages_cached == 0


@pytest.mark.parametrize(
    ("saved_on", "restored_on"), [((0, 0, 1), (0, 1, 1)), ((0, 0, 0), (0, 1, 2))]
)
def test_the_layers_may_lie_on_other_devices_than_before(
    tmp_path: Path, saved_on: Sequence[int], restored_on: Sequence[int]
) -> None:
    ids, found = list(range(100)), []
    for split in (saved_on, restored_on):
        devices = [CpuDevice() for _ in range(3)]
        plan = plan_kv(LAYERS_3, EngineConfig(context_tokens=192, kv_tokens=192), 0)
        cache = KvCache(LAYERS_3, plan, [devices[i] for i in split])
        if not found:
            table = BlockTable()
            assert cache.grow(table, len(ids))
            for part in cache.parts:
                part.copy_(torch.randint(0, 256, part.shape, dtype=torch.uint8))
            cache.free(table, ids, len(ids))
            assert save_snapshot(tmp_path / "kv", ids, cache, "model") == len(ids)
        else:
            assert restore_snapshot(tmp_path / "kv", cache, "model", 256) == ids
        pages, _ = cache.cached_pages([*ids, -1])
        rows = [part[:, pages].flatten(1, 2)[:, : len(ids)] for part in cache.parts]
        assert len(rows) == len(set(split))
        found.append(torch.cat(rows))
    assert torch.equal(*found)

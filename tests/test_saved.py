"""Saved sequences: what comes back, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_run import request, run
from test_engine import MakeEngine, make, model

from hybridmoe.engine import Engine
from hybridmoe.errors import ConfigError

__all__ = ["make", "model"]  # fixtures

IDS = [i * 7 % 250 for i in range(150)]


@pytest.fixture
def saved(make: MakeEngine, tmp_path: Path) -> Iterator[tuple[Path, list[int]]]:
    """A file, and what the sequence goes on with."""
    engine = make()
    (answer,) = run(engine, request(IDS, 20))
    whole = [*IDS, *answer.ids]
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
    (answer,) = run(make(), request([*ids, 0], 1))
    assert answer.end.usage.cached_tokens == 0
    before = engine.stats().kv_pages_used
    last = run(make(), request(ids, 1))[0].ids  # what follows the saved ones
    (answer,) = run(engine, request([*ids, *last], 30))
    assert answer.end.usage.cached_tokens == len(ids) == 169
    assert answer.ids == expected
    assert engine.stats().kv_pages_used == before == 0


@pytest.mark.parametrize(
    ("options", "fingerprint", "message"),
    [
        ({}, "another", "belongs to another model: fingerprint is 'model', expected 'another'"),
        ({"kv_type": "int8"}, "model", "kv_type is 'bf16', expected 'int8'"),
        ({"context_tokens": 128, "kv_tokens": 128}, "model", "holds up to 128"),
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

"""Agreement of ranks: codes that need the secret, differences that are named, junk that is not."""

from dataclasses import replace
from typing import Any

import pytest
from ranks import hello

from hybridmoe.cluster.agreement import Hello, Identity, Secret, Session, Terms
from hybridmoe.errors import ClusterError

SESSION = Session(Secret(b"secret"), 1, b"a" * 16, b"b" * 16)
HELLO = hello()
TERMS = Terms(shares=((0, 3), (3, 8)), max_tokens=64, runs_mtp=True)


def test_what_is_sealed_is_opened_by_the_same_session_alone() -> None:
    sealed = SESSION.seal("hello", b"body")
    assert SESSION.open("hello", sealed) == b"body"
    assert SESSION.open("terms", sealed) is None
    others = (
        replace(SESSION, secret=Secret(b"Secret")),
        replace(SESSION, rank=2),
        replace(SESSION, theirs=b"c" * 16),  # a replay
        replace(SESSION, ours=b"c" * 16),
        replace(SESSION, theirs=SESSION.ours, ours=SESSION.theirs),  # a reflection
    )
    for other in others:
        assert other.open("hello", sealed) is None


@pytest.mark.parametrize("length", [0, 31, 32, 35])
def test_cut_messages_are_not_opened(length: int) -> None:
    assert SESSION.open("hello", SESSION.seal("hello", b"body")[:length]) is None


def test_every_changed_byte_is_noticed() -> None:
    sealed = SESSION.seal("hello", b"body")
    for i in range(len(sealed)):
        changed = sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]
        assert SESSION.open("hello", changed) is None


@pytest.mark.parametrize("sent", [HELLO, TERMS, Terms(refusal="no")], ids=["hello", "terms", "no"])
def test_what_is_encoded_is_decoded(sent: Any) -> None:
    assert type(sent).decode(sent.encode()) == sent
    assert TERMS.ranges == (range(3), range(3, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", True),
        ("version", 3),
        ("host", "a\nb"),
        ("file", "f" * 5000),
        ("ram_bytes", -1),
        ("ram_bytes", 1.5),
        ("read_gbs", 1e300),
        ("read_gbs", float("nan")),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ClusterError, match=f"malformed handshake: {field} is "):
        Hello.decode(replace(HELLO, **{field: value}).encode())


@pytest.mark.parametrize(
    "shares", [1, [1], [[0, 1, 2]], [[0, -1]], [[0, "1"]], [[0, 1 << 60]]], ids=str
)
def test_shares_that_are_no_ranges_are_refused(shares: object) -> None:
    with pytest.raises(ClusterError, match="malformed handshake: shares is "):
        Terms.decode(replace(TERMS, shares=shares).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"x": 1}', b"[" * 60000, b"\xff"])
def test_junk_is_refused(body: bytes) -> None:
    with pytest.raises(ClusterError, match="malformed handshake: expected "):
        Hello.decode(body)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("protocol", 2, "rank 1 has protocol 2, rank 0 has 1: install the same version"),
        ("version", "1.1", "rank 1 has hybridmoe 1.1, rank 0 has 1.0: install the same version"),
        ("num_ranks", 3, "rank 1 has WORLD_SIZE 3, rank 0 has 2: start all ranks with the same"),
        ("file", "g" * 64, "has a model file with fingerprint g{16}..., rank 0 has f{16}...: give"),
        ("model", "n" * 64, "has a model configuration with fingerprint n{16}..., rank 0 has m"),
    ],
)
def test_a_difference_names_both_sides(field: str, value: object, line: str) -> None:
    ours = HELLO.identity
    assert isinstance(ours, Identity) and ours.difference(ours, "rank 1") is None
    found = ours.difference(replace(ours, **{field: value}), "rank 1")
    assert found is not None
    assert (
        line.replace("g{16}", "g" * 16).replace("f{16}", "f" * 16).replace("n{16}", "n" * 16)
        in found
    )

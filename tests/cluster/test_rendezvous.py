"""Meeting place of ranks: read from options and environment, and open at one address only."""

import os
import socket
from pathlib import Path

import pytest
from ranks import free_port

from hybridmoe.cluster.rendezvous import find_meeting_place, read_key, write_key
from hybridmoe.errors import ClusterError, ConfigError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def test_the_store_is_one_port_above_torchruns() -> None:
    place = find_meeting_place(None, None)
    assert (place.rank, place.num_ranks, str(place)) == (1, 2, "127.0.0.1:29501")
    assert str(find_meeting_place("[::1]:77", None)) == "[::1]:77"
    assert place.own_address() == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "", "RANK is not set: start every rank by torchrun"),
        ("WORLD_SIZE", "", "WORLD_SIZE is not set"),
        ("WORLD_SIZE", "1", "WORLD_SIZE='1': expected a number from 2"),
        ("RANK", "2", "RANK='2': expected a number from 0 to 1"),
        ("RANK", "-1", "RANK='-1': expected"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
        ("MASTER_PORT", "65535", "MASTER_PORT='65535': expected a number from 1 to 65534"),
        ("MASTER_ADDR", "no.such.host.invalid", "cluster_address 'no.such.host.invalid': "),
        ("MASTER_ADDR", "0.0.0.0", "cluster_address 0.0.0.0: expected the address of one"),
        ("MASTER_ADDR", "192.0.2.1", "reachable from other machines: give every rank the same"),
    ],
)
def test_what_is_missing_or_open_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        find_meeting_place(None, None)


def test_a_key_opens_other_addresses_if_it_is_long_enough(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(ConfigError, match="key: No such file"):
        find_meeting_place("192.0.2.1:5", key)
    key.touch(0o600)
    key.write_text("short\n")
    with pytest.raises(ConfigError, match="key: 5 bytes, expected 16 to 65536"):
        find_meeting_place("192.0.2.1:5", key)
    key.write_text("long enough to be no word\n")
    place = find_meeting_place("192.0.2.1:5", key)
    assert place.secret.mac(b"x") != find_meeting_place(None, None).secret.mac(b"x")
    key.write_text("long enough to be no word")  # without the end of its line
    assert place.secret.mac(b"x") == find_meeting_place("192.0.2.1:5", key).secret.mac(b"x")


def test_a_key_that_others_can_read_or_that_is_no_file_is_refused(tmp_path: Path) -> None:
    key, pipe = tmp_path / "key", tmp_path / "pipe"
    key.write_text("long enough to be no word")
    for mode in (0o644, 0o602):
        key.chmod(mode)
        with pytest.raises(ConfigError, match=rf"key: all users .* \(mode {mode:o}\): chmod 600"):
            find_meeting_place("127.0.0.1:5", key)
    key.chmod(0o440)  # of a group that a container runs with
    find_meeting_place("127.0.0.1:5", key)
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ConfigError, match=r": expected a regular file"):
            find_meeting_place("127.0.0.1:5", path)


def test_the_store_listens_at_its_address_alone() -> None:
    place = find_meeting_place(f"127.0.0.1:{free_port()}", None)
    server = place.open_store()
    client = place.join_store(10.0)
    write_key(server, "a", b"\x00\xff")
    assert read_key(client, "a") == b"\x00\xff"
    for junk in ("zz", "é", "0" * (1 << 18)):
        client.set("a", junk)
        assert read_key(server, "a") == b""
    with pytest.raises(ConnectionRefusedError):  # 127.0.0.1 alone, not this machine's others
        socket.create_connection(("127.0.0.2", place.port), timeout=5).close()
    with pytest.raises(ClusterError, match=f"rank 0 cannot listen at {place}: Address already"):
        place.open_store()


def test_a_rank_0_that_is_not_there_is_named() -> None:
    place = find_meeting_place(f"127.0.0.1:{free_port()}", None)
    with pytest.raises(ClusterError, match=f"rank 0 does not listen at {place}"):
        place.join_store(0.3)

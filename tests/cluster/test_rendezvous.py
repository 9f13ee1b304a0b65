"""Meeting place of ranks: read from options and environment, and open at one address only."""

import socket
from pathlib import Path

import pytest
from ranks import free_port

from hybridmoe.cluster.rendezvous import find_meeting_place
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


def test_rank_0_listens_at_its_address_alone() -> None:
    place = find_meeting_place(f"127.0.0.1:{free_port()}", None)
    with place.listen():
        socket.create_connection((place.host, place.port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):  # 127.0.0.1, not this machine's others
            socket.create_connection(("127.0.0.2", place.port), timeout=5).close()
        with pytest.raises(ClusterError, match=f"at {place}: Address already in use$"):
            place.listen()
    with place.listen():  # at once, although a connection has just ended
        pass


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("long enough to be no word")
    with pytest.raises(ClusterError, match=r"at 192.0.2.1:5: Cannot assign requested address$"):
        find_meeting_place("192.0.2.1:5", key).listen()


def test_of_a_names_addresses_rank_0_takes_its_own_and_workers_try_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Debian has it: a host's own name is a loopback address, beside that of its network."""
    found = ["127.0.1.1", "192.0.2.1", "127.0.0.1"]

    def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "a"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("long enough to be no word")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    worker = find_meeting_place("a:5", key)
    assert str(worker) == "a:5" and next(iter(worker.addresses())) == "192.0.2.1"
    with pytest.raises(ConfigError, match=r"cluster_address 192.0.2.1 is reachable from other"):
        find_meeting_place("a:5", None)
    monkeypatch.setenv("RANK", "0")
    assert str(find_meeting_place("a:5", None)) == "127.0.1.1:5"  # 192.0.2.1 is not here
    found[:] = ["192.0.2.7"]  # a name may be another host's by now
    assert worker.addresses() == found

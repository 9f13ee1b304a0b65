"""Listeners of a server: an address, or a socket in the file system."""

import os
import socket
import stat
from pathlib import Path

import pytest

from hybridmoe.cli.listener import is_local, listening, network_url, url_of
from hybridmoe.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the system bounds the length of a socket's path
    return Path("socket")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_has_its_permissions_and_goes_at_the_end(path: Path, mode: int) -> None:
    with listening(f"unix:{path}", 0, mode) as listener:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            listener.accept()[0].close()
        assert url_of(f"unix:{path}", listener) == f"unix:{path}"
        assert network_url(f"unix:{path}", listener) is None
    assert not path.exists()


def test_all_addresses_are_named_by_one_for_this_machine_and_one_for_others() -> None:
    with listening("0.0.0.0", 0, 0o600) as listener:
        port = listener.getsockname()[1]
        assert url_of("0.0.0.0", listener) == f"http://127.0.0.1:{port}"
        assert network_url("0.0.0.0", listener) == f"http://{socket.gethostname()}:{port}"
        assert network_url("127.0.0.1", listener) is None


def test_an_empty_address_is_not_all_of_them() -> None:
    with pytest.raises(ConfigError, match="--host '': expected an address"), listening("", 0, 0):
        pass


def test_what_a_killed_server_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    assert path.exists()
    with listening(f"unix:{path}", 0, 0o600):
        pass
    assert not path.exists()


def test_a_server_that_listens_keeps_its_path(path: Path) -> None:
    with listening(f"unix:{path}", 0, 0o600):
        with (
            pytest.raises(ConfigError, match="cannot listen at socket: another server does"),
            listening(f"unix:{path}", 0, 0o600),
        ):
            pass
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with (
        pytest.raises(ConfigError, match="it is there, and no socket"),
        listening(f"unix:{path}", 0, 0o600),
    ):
        pass
    assert path.read_text() == "mine"


def test_a_path_that_another_server_took_meanwhile_is_left_to_it(path: Path) -> None:
    with listening(f"unix:{path}", 0, 0o600):
        path.unlink()
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.bind(str(path))
    assert path.exists()
    other.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/such/folder", "No such file or directory"), ("x" * 200, "path too long"), ("", "is")],
)
def test_a_path_that_cannot_be_is_one_line(path: Path, name: str, reason: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"cannot listen at {name or '.'}: .*{reason}"),
        listening(f"unix:{name}", 0, 0o600),
    ):
        pass


def test_only_this_machine_reaches_a_path() -> None:
    assert is_local("unix:/run/hybridmoe") and is_local("::1") and is_local("127.0.0.9")
    assert not is_local("0.0.0.0") and not is_local("10.0.0.1")


def test_the_process_keeps_its_mask(path: Path) -> None:
    before = os.umask(0o022)
    try:
        with listening(f"unix:{path}", 0, 0o600):
            pass
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)

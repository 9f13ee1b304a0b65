"""A server's log on standard error, and what it tells a supervisor."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridmoe.cli.server_log import ServerLog, notify_supervisor

FIELDS = {"method": "GET", "path": "/x", "status": 404, "total_s": 0.001}


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


def test_lines_for_people(capsys: pytest.CaptureFixture[str], root_logger: logging.Logger) -> None:
    log = ServerLog(is_json=False, is_quiet=False)
    log.say("warning: look")
    log.request(FIELDS)
    logging.getLogger("a.library").warning("it %s", "failed")
    assert capsys.readouterr().err.splitlines() == [
        "hybridmoe: warning: look", "hybridmoe: GET /x 404, 0.00 s",
        "hybridmoe: warning: it failed",
    ]  # fmt: skip


def test_each_line_is_json(capsys: pytest.CaptureFixture[str], root_logger: logging.Logger) -> None:
    log = ServerLog(is_json=True, is_quiet=False)
    log.say("ready: m")
    log.say("warning: look")
    log.request(FIELDS)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("a.library").exception("it %s", "failed")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "info", "error"]
    assert [line.get("message", "")[:9] for line in lines] == ["ready: m", "look", "", "it failed"]
    assert lines[2].items() >= FIELDS.items()
    assert "two\nlines" in lines[3]["message"]
    assert all(line["time"].endswith("Z") for line in lines)


def test_a_supervisor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address, shown in (("notify", str(tmp_path / "notify")), ("\0hm-test", "@hm-test")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", shown)
            notify_supervisor(READY="1", STATUS="serving a\nSTOPPING=1")
            assert supervisor.recv(999) == b"READY=1\nSTATUS=serving a STOPPING=1"


def test_without_a_supervisor_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", "/no/such/socket", "/" + "x" * 300):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify_supervisor(READY="1")

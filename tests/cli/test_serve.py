"""`hybridmoe serve` as a process: it listens, loads, responds and ends, or fails in one line."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import psutil
import pytest
from waiting import HANG_S, eventually

from hybridmoe.cli.app import main
from hybridmoe.cli.listener import listen
from hybridmoe.demo import demo_path
from hybridmoe.experts.routing_trace import read_trace

PREPARING_THREADS = 4  # of the endpoint's pool, which starts with the first request


class Held(NamedTuple):
    """Resources that a process holds."""

    maps: int  # of GGUF files
    files: int
    threads: int


def held_by(process: "subprocess.Popen[str]") -> Held:
    one = psutil.Process(process.pid)
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return Held(sum(line.endswith(".gguf") for line in maps), one.num_fds(), one.num_threads())


@contextmanager
def serving(
    *arguments: str, uds: str | None = None
) -> Iterator[tuple["subprocess.Popen[str]", httpx2.Client]]:
    """Run a server; uds: the socket that it listens at, for the client."""
    command = [sys.executable, "-m", "hybridmoe", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (url := re.search(r"listening at (\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        transport = httpx2.HTTPTransport(uds=uds) if uds else None
        base_url = "http://localhost" if uds else url[1]
        with httpx2.Client(base_url=base_url, transport=transport, timeout=HANG_S) as http:
            yield process, http
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ready(http: httpx2.Client) -> None:
    eventually(lambda: http.get("/health").status_code == 200)


def test_it_serves_and_ends_at_an_interrupt() -> None:
    with serving("--model-name", "demo", "--slots", "2") as (process, http):
        ready(http)
        assert http.get("/v1/models").json()["data"][0]["id"] == "demo"
        body = {"messages": [{"role": "user", "content": "What is 12 + 34?"}], "temperature": 0}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"].endswith("46")
        endless = {"prompt": "a", "max_tokens": 10**6, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=endless) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            assert "the server is ending" in "".join(lines)
            assert process.wait(HANG_S) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nalpha\n\n  beta \n")
    with serving("--api-key-file", str(keys), "--api-key", "gamma", "--ctx", "64") as (_, http):
        ready(http)
        assert http.get("/v1/models").status_code == 401
        for key in ("alpha", "beta", "gamma"):
            headers = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=headers).status_code == 200


def test_models_take_turns_behind_a_socket_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--model", f"one={demo_path()}", "--model", f"two={demo_path()}")
    files = ("--expert-ram", "8MiB", "--expert-profile", "hot.json", "--trace", "run.trace")
    life = ("--max-loaded", "1", "--idle-unload", "1s", "--drain", "100s", "--log-format", "json")
    with serving(
        *options, *files, *life, "--ctx", "256", "--host", "unix:socket", uds="socket"
    ) as (process, http):
        eventually(lambda: http.get("/health").status_code == 200)
        at_start = held_by(process)
        body = {"prompt": "a", "max_tokens": 4, "temperature": 0}
        texts = [
            http.post("/v1/completions", json={**body, "model": name}).json()["choices"][0]["text"]
            for name in ("one", "two", "one")
        ]
        assert texts[0] == texts[1] == texts[2] != ""
        states = http.get("/health").json()["models"]
        assert [state["status"] for state in states.values()] == ["loaded", "unloaded"]

        eventually(lambda: http.get("/health").json()["models"]["one"]["status"] == "unloaded")
        at_rest = held_by(process)
        assert (at_start.maps, at_rest.maps) == (1, 0)
        assert at_rest.files < at_start.files
        assert at_rest.threads <= at_start.threads + PREPARING_THREADS
        for name in ("hot.one.json", "hot.two.json", "run.one.trace", "run.two.trace"):
            assert (tmp_path / name).exists(), name
        assert all(read_trace(tmp_path / f"run.{n}.trace").is_complete for n in ("one", "two"))

        slow = {"prompt": "a", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=slow) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = "".join(lines)
        assert '"finish_reason":"length"' in rest and "server_ending" not in rest
        assert process.wait(HANG_S) == -signal.SIGTERM
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
        assert [line["status"] for line in lines if line.get("path") == "/v1/completions"] == [
            200
        ] * 4
    assert not Path("socket").exists()


def test_tokens_are_sent_as_they_come() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # asyncio then switches Nagle's delay off


def test_a_listening_server_takes_connections() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname(), HANG_S),
    ):
        pass


def failure(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *arguments]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("hybridmoe: error: ")
    return said[-1]


def test_what_keeps_it_from_serving_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = failure(["--port", port], capsys)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; --port" in said
    keys = tmp_path / "keys"
    keys.write_text("# none\n")
    assert "has no API key" in failure(["--api-key-file", str(keys)], capsys)
    assert "cannot listen on no.such.host" in failure(["--host", "no.such.host.invalid"], capsys)


@pytest.mark.parametrize(
    ("option", "value", "status", "words"),
    [
        ("--idle-unload", "soon", 2, "'soon': expected a time such as 30s, 15m or 2h"),
        ("--idle-unload", "", 2, "expected a time"),
        ("--drain", "-1s", 2, "expected a time"),
        ("--hold", "nan", 2, "expected a time"),
        ("--hold", "1e9h", 2, "expected a time"),
        ("--max-loaded", "0", 2, "0 is not in the range"),
        ("--on-unloaded", "wait", 2, "'hold', 'refuse'"),
        ("--socket-mode", "888", 1, "expected permission bits such as 600"),
        ("--socket-mode", "1777", 1, "expected permission bits such as 600"),
        ("--model", "b.gguf", 1, "expected NAME=FILE"),
    ],
)
def test_options_of_a_service_are_checked(
    option: str, value: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", option, value]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["absent.gguf"], "absent.gguf"), (["--ctx", "0"], "--ctx 0: ")],
)
def test_a_model_that_cannot_be_loaded_ends_the_server(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "hybridmoe", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_open_door_is_for_addresses_and_own_names() -> None:
    with serving("--host", "0.0.0.0", "--allow-host", "box.example", "--ctx", "64") as (_, http):
        for host in (socket.gethostname(), "10.1.2.3", "localhost", "BOX.example"):
            assert http.get("/health", headers={"Host": host}).status_code != 403, host
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_an_open_door_is_warned_of() -> None:
    for arguments, warns in (((), True), (("--api-key", "x"), False)):
        command = [sys.executable, "-m", "hybridmoe", "serve", "--port", "0", "--host", "0.0.0.0"]
        done = subprocess.run(
            [*command, *arguments, "absent.gguf"],
            capture_output=True, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip
        assert ("is reachable from other machines, and no --api-key is set" in done.stderr) == warns

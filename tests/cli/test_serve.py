"""`hybridmoe serve` as a process: it listens, loads, responds and ends, or fails in one line."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from waiting import HANG_S, eventually

from hybridmoe.cli.app import main
from hybridmoe.cli.listener import listen


@contextmanager
def serving(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", httpx2.Client]]:
    command = [sys.executable, "-m", "hybridmoe", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (url := re.search(r"listening at (\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        with httpx2.Client(base_url=url[1], timeout=HANG_S) as http:
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
        assert f"cannot listen on 127.0.0.1:{port}" in failure(["--port", port], capsys)
    keys = tmp_path / "keys"
    keys.write_text("# none\n")
    assert "has no API key" in failure(["--api-key-file", str(keys)], capsys)
    assert "cannot listen on no.such.host" in failure(["--host", "no.such.host.invalid"], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["absent.gguf"], "absent.gguf"), (["--ctx", "0"], "context_tokens=0")]
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

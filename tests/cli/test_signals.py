"""Signals that end a command: what was to be saved is saved, clients are told, nothing is shown."""

import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_llm
import httpx2
import pytest
from waiting import HANG_S

import hybridmoe
from hybridmoe.cli import signals
from hybridmoe.cli.app import main
from hybridmoe.cli.signals import (
    ENDING,
    SignalCounter,
    Terminated,
    handled,
    terminations,
    uninterrupted,
)
from hybridmoe.experts.routing_trace import read_trace

# The command with a model that answers without end, and says when it is closed: "closing", then
# "closed" once it has read a line.
COMMAND = """
import sys, time
import hybridmoe, fake_engine, fake_llm

fakes = {"serve": fake_engine.FakeLLM, "generate": fake_llm.FakeLLM}

class Model(fakes[sys.argv[1]]):
    notes, expert_plan = (), None
    def close(self):
        print("closing", file=sys.stderr, flush=True)
        sys.stdin.readline()
        super().close()
        print("closed", file=sys.stderr, flush=True)

def load(path, options, *, progress):
    try:
        while path is not None:
            time.sleep(0.01)
            progress(hybridmoe.Progress("load", 1, 2, "bytes"))
    finally:
        print("loaded", file=sys.stderr, flush=True)
    model = Model()
    if sys.argv[1] == "serve":
        model.engine.kv_plan = "fake"
    return model

hybridmoe.load = load
from hybridmoe.cli.app import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def hang_ups_are_heard() -> Iterator[None]:
    """A runner under nohup ignores SIGHUP, which its children would inherit and keep."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Command:
    """A command under way."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said = ""

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for(self, words: str) -> str:
        """The line of standard error that has the words."""
        assert self.process.stderr is not None
        while line := self.process.stderr.readline():
            self.said += line
            if words in line:
                return line
        raise AssertionError(self.said)

    def end(self) -> int:
        """Let the model close; the exit code. What was said on the way is in `said`."""
        _, rest = self.process.communicate("\n" if self.process.stdin else None)
        self.said += rest
        assert "Traceback" not in self.said, self.said
        assert "ERROR" not in self.said, self.said
        return self.process.returncode


@contextmanager
def running(*arguments: str, code: str = COMMAND) -> Iterator[Command]:
    tests = os.path.dirname(fake_llm.__file__)
    environment = fake_llm.environment()
    environment["PYTHONPATH"] += os.pathsep + tests
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    with process:
        try:
            yield Command(process)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_responses_under_way_end_with_503_and_the_model_is_closed(number: int) -> None:
    slow = {"messages": [{"role": "user", "content": "slow"}]}
    with running("serve", "--port", "0") as command:
        url = command.wait_for("listening at").split()[3]
        command.wait_for("ready:")
        whole: list[httpx2.Response] = []
        with httpx2.Client(base_url=url, timeout=HANG_S) as http:
            path = "/v1/chat/completions"
            asking = threading.Thread(target=lambda: whole.append(http.post(path, json=slow)))
            asking.start()
            with http.stream("POST", path, json={**slow, "stream": True}) as stream:
                lines = stream.iter_lines()
                while "hybridmoe_num_requests_running 2.0" not in http.get("/metrics").text:
                    pass
                command.send(number)
                last = [line for line in lines if line][-2:]
            asking.join()
        error = json.loads(last[0].removeprefix("data: "))["error"]
        assert (error["code"], error["message"]) == ("server_ending", "the server is ending")
        assert last[1] == "data: [DONE]"
        assert whole[0].status_code == 503
        assert whole[0].json()["error"] == error
        assert command.end() == -number  # for who started it: it died of the signal
        assert "closed" in command.said


def test_a_model_that_loads_is_given_up() -> None:
    with running("serve", "--port", "0", "slow.gguf") as command:
        command.wait_for("listening at")
        command.send(signal.SIGINT)
        assert command.end() == 130
        assert "loaded" in command.said  # its thread has ended before the interpreter does
        assert "error" not in command.said


@pytest.mark.parametrize("arguments", [("serve", "--port", "0"), ("generate", "-p", "slow")])
def test_further_signals_interrupt_no_closing(arguments: tuple[str, ...]) -> None:
    with running(*arguments) as command:
        if arguments[0] == "serve":
            command.wait_for("ready:")
        else:
            assert command.process.stdout is not None
            command.process.stdout.read(1)
        command.send(signal.SIGINT)
        command.wait_for("closing")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            command.send(number)
        assert command.end() == 130
        assert "closed" in command.said


def test_generate_closes_its_model() -> None:
    with running("generate", "-p", "slow") as command:
        assert command.process.stdout is not None
        command.process.stdout.read(1)
        command.send(signal.SIGHUP)
        assert command.end() == -signal.SIGHUP
        assert "closed" in command.said


def test_profile_and_trace_of_a_server_that_is_stopped(tmp_path: Path) -> None:
    profile, trace = tmp_path / "hot.json", tmp_path / "t.trace"
    code = "import sys; from hybridmoe.cli.app import main; sys.exit(main())"
    options = ("--expert-ram", "8MiB", "--expert-profile", str(profile), "--trace", str(trace))
    with running("serve", "--port", "0", *options, code=code) as command:
        url = command.wait_for("listening at").split()[3]
        command.wait_for("ready:")
        body = {"prompt": "What is", "max_tokens": 4, "temperature": 0}
        assert httpx2.post(f"{url}/v1/completions", json=body, timeout=HANG_S).status_code == 200
        command.send(signal.SIGTERM)
        assert command.end() == -signal.SIGTERM
    assert json.loads(profile.read_text())["format"] == "hybridmoe expert profile 1"
    written = read_trace(trace)
    assert written.is_complete and written.num_tokens > 4


# The real command, which gets a signal while its fifth step is recorded.
INTERRUPTED = """
import os, sys, threading
from hybridmoe.engine.engine import Engine
from hybridmoe.experts.routing_trace import TraceWriter

NUMBER, close, add_step = int(sys.argv.pop()), Engine.close, TraceWriter.add_step
closing, steps = threading.Event(), []

def tell_and_close(self):
    closing.set()
    close(self)

def add_step_and_interrupt(self, *step):
    add_step(self, *step)
    steps.append(step)
    if len(steps) == 5:
        os.kill(os.getpid(), NUMBER)
        closing.wait()

Engine.close, TraceWriter.add_step = tell_and_close, add_step_and_interrupt
from hybridmoe.cli.app import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("command", "number"),
    [("generate", signal.SIGINT), ("generate", signal.SIGTERM), ("chat", signal.SIGHUP)],
)
def test_profile_and_trace_of_a_response_that_is_ended(
    command: str, number: int, tmp_path: Path
) -> None:
    profile, trace = tmp_path / "hot.json", tmp_path / "t.trace"
    options = ["--expert-ram", "8MiB", "--expert-profile", str(profile), "--trace", str(trace)]
    options += ["-p", "What is"] if command == "generate" else []
    with running(command, *options, str(number), code=INTERRUPTED) as ended:
        assert ended.process.stdin is not None
        ended.process.stdin.write("What is 47 + 38?")
        ended.process.stdin.close()
        ended.process.stdin = None
        code = ended.end()
        assert code == (130 if number == signal.SIGINT else -number), ended.said
    assert json.loads(profile.read_text())["format"] == "hybridmoe expert profile 1"
    assert read_trace(trace).is_complete


# The real command, on a disk of which no read returns once the model is loaded.
HANGING = """
import functools, os, sys, threading, time
from hybridmoe import _C
from hybridmoe.experts.disk import cached_experts, file_reader
from hybridmoe.llm.llm import LLM

os.environ["HYBRIDMOE_IO"] = "threads"
cached_experts.STALL_S = file_reader.CLOSE_S = 0.1
faults = _C.ReadFaults()
_C.FileReader = functools.partial(_C.FileReader, faults=faults)
init = LLM.__init__

def tell():
    while not faults.num_hung:
        time.sleep(0.01)
    print("the disk hangs", file=sys.stderr, flush=True)

def hang_when_loaded(self, *parts):
    init(self, *parts)
    faults.hang()
    threading.Thread(target=tell, daemon=True).start()

LLM.__init__ = hang_when_loaded
from hybridmoe.cli.app import main
sys.exit(main())
"""


def test_a_server_ends_while_the_disk_hangs(tmp_path: Path) -> None:
    profile, status = tmp_path / "hot.json", []
    options = ("--expert-ram", "2MiB", "--expert-profile", str(profile))
    with running("serve", "--port", "0", *options, code=HANGING) as command:
        url = command.wait_for("listening at").split()[3]
        command.wait_for("ready:")
        body = {"prompt": "What is", "max_tokens": 4}

        def ask() -> None:
            path = f"{url}/v1/completions"
            status.append(httpx2.post(path, json=body, timeout=HANG_S).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        command.wait_for("the disk hangs")
        command.send(signal.SIGTERM)
        assert command.end() == -signal.SIGTERM
        asking.join()
    assert status == [503]
    assert "the disk has not returned reads for 0.1 s; closed without them" in command.said
    assert json.loads(profile.read_text())["format"] == "hybridmoe expert profile 1"


# The real command, which gets Ctrl-C when it imports a module.
STARTING = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == NAME:
            os.kill(os.getpid(), signal.SIGINT)

NAME = sys.argv.pop()
sys.meta_path.insert(0, Interrupt())
from hybridmoe.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["hybridmoe.cli.app", "click", "hybridmoe.cli.serve", "torch"])
def test_an_interrupt_while_the_command_starts_shows_nothing(module: str) -> None:
    with running("serve", "--port", "0", module, code=STARTING) as command:
        assert command.end() == 130
    lines = command.said.strip().splitlines()  # an empty one ends the terminal's ^C
    assert all(line.startswith("hybridmoe: listening at") for line in lines), command.said


def test_the_command_that_is_installed_is_the_one_that_an_interrupt_cannot_upset() -> None:
    project = Path(hybridmoe.__file__).parent.parent / "pyproject.toml"
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert scripts == {"hybridmoe": "hybridmoe.__main__:main"}


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    code = STARTING.replace("NAME =", "signal.signal(signal.SIGINT, signal.SIG_IGN); NAME =")
    with running("generate", "-p", "Hello!", "--max-tokens", "1", "click", code=code) as command:
        assert command.end() == 0


def test_a_signal_is_raised_once() -> None:
    with terminations() as come:
        with pytest.raises(Terminated) as raised:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM
    assert come[0] == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminations():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_elsewhere_than_in_the_main_thread_nothing_is_handled() -> None:
    def work() -> None:
        with handled(ENDING, lambda _: None):
            assert signal.getsignal(signal.SIGINT) is before

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_code_of_a_command_that_was_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(hybridmoe, "load", terminate, raising=False)
    assert main(["generate", "-p", "x"]) == 143


def test_only_repeated_interrupts_for_seconds_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, codes = 100.0, []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    counter = SignalCounter()
    for _ in range(20):
        counter(signal.SIGINT)  # a key that is held
    now_s += 10.0
    counter(signal.SIGTERM)
    assert codes == []
    counter(signal.SIGINT)
    assert codes == [130]
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        now_s += 10.0
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]
        signal.raise_signal(signal.SIGINT)
        assert codes == [130, 130]

"""Trial process: grammars that crash it or exceed a limit are refused, and it is restarted."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hostile_grammars import lark_chain, optional_lark, schema_chain, slow_lark
from waiting import HANG_S

from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_limits import CompileLimits
from hybridmoe.text.grammar_process import GrammarProcess

SMALL = [{"name": "format", "lark_grammar": 'start: "yes" | "no"'}]


class Cancelled(Exception):
    pass


def vocabulary() -> dict[str, Any]:
    tokens = [bytes([i]) for i in range(256)]
    return {"tokens": [*tokens, b"[EOS]"], "special_ids": [256], "eos_ids": [256], "bos_id": None}


def children(process: GrammarProcess) -> list[psutil.Process]:
    """The process, if it runs."""
    return [] if process.pid is None else [psutil.Process(process.pid)]


@pytest.fixture
def make() -> Iterator[Callable[..., GrammarProcess]]:
    made: list[GrammarProcess] = []

    def make(**limits: Any) -> GrammarProcess:
        made.append(GrammarProcess(vocabulary, CompileLimits(**limits)))
        return made[-1]

    yield make
    for process in made:
        started = children(process)
        process.close()
        assert not any(child.is_running() for child in started)


def refusal(
    process: GrammarProcess, part: dict[str, Any], check: Callable[[], None] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        process.resolve([{"name": "format", **part}], check)
    return str(caught.value)


def test_a_grammar_is_returned_converted(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    assert not children(process)  # before the first grammar
    assert process.resolve(SMALL) == SMALL
    (child,) = children(process)
    (part,) = process.resolve([{"name": "format", "text": 'root ::= "a" b\nb ::= [0-9]'}])
    assert part["name"] == "format" and "start:" in part["lark_grammar"]
    assert children(process) == [child]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"lark_grammar": "start: foo"}, "foo"),
        ({"text": "root ::= foo"}, "foo"),
        ({"text": "root ::= " + "(" * 5000}, "nested too deep"),
        ({"json_schema": {"type": "nope"}}, "nope"),
        ({"lark_grammar": "start: %json " + "[" * 9999}, "recursion limit"),
        ({"json_schema": schema_chain(3000)}, "nested more than 2000 deep"),
        ({"lark_grammar": lark_chain(3000)}, "nested more than 2000 deep"),
        ({"lark_grammar": 'start: A\nA: "x" & "y"'}, "no text fits it"),
        ({"lark_grammar": optional_lark(8000)}, "Too many items"),  # found by the first mask
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_grammar_that_does_not_compile_is_refused_in_one_line(
    make: Callable[..., GrammarProcess], part: dict[str, Any], message: str
) -> None:
    text = refusal(make(), part)
    assert message in text and "\n" not in text and len(text) <= 300


def test_a_stack_overflow_is_a_refusal(
    make: Callable[..., GrammarProcess],
) -> None:
    process = make(stack_bytes=256 << 10)
    assert refusal(process, {"json_schema": schema_chain(600)}) == "nested too deep to compile"
    assert not children(process)
    assert process.resolve(SMALL) == SMALL


def test_a_slow_grammar_is_refused(make: Callable[..., GrammarProcess]) -> None:
    slow = {"lark_grammar": slow_lark(1900)}
    assert refusal(make(cpu_s=1), slow) == "takes longer than 1 s to compile"
    assert refusal(make(wall_s=0.0), slow) == "takes longer than 0 s to compile"


def test_a_grammar_that_takes_too_much_memory_is_refused(
    make: Callable[..., GrammarProcess],
) -> None:
    process = make(memory_bytes=1 << 20)
    large = {"lark_grammar": f"start: /{'(ab)?' * 6000}/"}  # 150 MB
    assert refusal(process, large) == "needs more than 1 MiB to compile"
    assert process.resolve(SMALL) == SMALL


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGSEGV, "nested"), (signal.SIGXCPU, "longer than 5 s"), (signal.SIGABRT, "512 MiB")],
)
def test_the_signal_tells_the_reason(
    make: Callable[..., GrammarProcess], number: int, message: str
) -> None:
    process = make()
    process.resolve(SMALL)

    def kill() -> None:
        for child in children(process):
            child.send_signal(number)

    assert message in refusal(process, {"lark_grammar": slow_lark(1900)}, kill)
    assert process.resolve(SMALL) == SMALL


def test_a_cancelled_trial_ends_at_once(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    num_checks = 0

    def check() -> None:
        nonlocal num_checks
        num_checks += 1
        if num_checks == 20:
            raise Cancelled

    process.resolve(SMALL)
    with pytest.raises(Cancelled):
        process.resolve([{"name": "format", "lark_grammar": slow_lark(1900)}], check)
    assert not children(process)
    assert process.resolve(SMALL) == SMALL


def test_ctrl_c_does_not_reach_it(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    process.resolve(SMALL)
    (child,) = children(process)
    assert os.getpgid(child.pid) != os.getpgid(0) and os.getsid(child.pid) != os.getsid(0)


def test_it_ends_with_its_parent() -> None:
    program = """if True:
        import os, signal
        from test_grammar_process import SMALL, children, vocabulary
        from hybridmoe.text.grammar_process import GrammarProcess
        process = GrammarProcess(vocabulary)
        process.resolve(SMALL)
        print(children(process)[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(result.stdout)).wait(HANG_S)

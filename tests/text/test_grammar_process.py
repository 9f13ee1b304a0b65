"""A grammar that ends its compiler, or goes beyond a limit, ends a process that can be spared."""

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

SMALL = [{"name": "form", "lark_grammar": 'start: "yes" | "no"'}]


class Unwanted(Exception):
    pass


def vocabulary() -> dict[str, Any]:
    tokens = [bytes([i]) for i in range(256)]
    return {"tokens": [*tokens, b"[EOS]"], "special_ids": [256], "eos_ids": [256], "bos_id": None}


def children(process: GrammarProcess) -> list[psutil.Process]:
    """Its processes: one, or none. Other tests of this session may have theirs."""
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
        process.resolve([{"name": "form", **part}], check)
    return str(caught.value)


def test_what_compiles_is_told_in_the_compilers_terms(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    assert not children(process)  # until there is something to try
    assert process.resolve(SMALL) == SMALL
    (child,) = children(process)
    (part,) = process.resolve([{"name": "form", "text": 'root ::= "a" b\nb ::= [0-9]'}])
    assert part["name"] == "form" and "start:" in part["lark_grammar"]
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
        ({"lark_grammar": optional_lark(8000)}, "Too many items"),  # told by the first mask
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_is_refused_in_one_line(
    make: Callable[..., GrammarProcess], part: dict[str, Any], message: str
) -> None:
    text = refusal(make(), part)
    assert message in text and "\n" not in text and len(text) <= 300


def test_an_overflow_of_the_stack_ends_the_process_and_is_a_refusal(
    make: Callable[..., GrammarProcess],
) -> None:
    process = make(stack_bytes=256 << 10)
    assert refusal(process, {"json_schema": schema_chain(600)}) == "nested too deep to compile"
    assert not children(process)
    assert process.resolve(SMALL) == SMALL


def test_what_takes_too_long_is_ended(make: Callable[..., GrammarProcess]) -> None:
    slow = {"lark_grammar": slow_lark(1900)}
    assert refusal(make(cpu_s=1), slow) == "takes longer than 1 s to compile"
    assert refusal(make(wall_s=0.0), slow) == "takes longer than 0 s to compile"


def test_what_takes_too_much_memory_is_ended(make: Callable[..., GrammarProcess]) -> None:
    process = make(memory_bytes=1 << 20)
    large = {"lark_grammar": f"start: /{'(ab)?' * 6000}/"}  # 150 MB
    assert refusal(process, large) == "needs more than 1 MiB to compile"
    assert process.resolve(SMALL) == SMALL


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGSEGV, "nested"), (signal.SIGXCPU, "longer than 5 s"), (signal.SIGABRT, "512 MiB")],
)
def test_how_it_died_is_what_was_wrong(
    make: Callable[..., GrammarProcess], number: int, message: str
) -> None:
    process = make()
    process.resolve(SMALL)

    def strike() -> None:
        for child in children(process):
            child.send_signal(number)

    assert message in refusal(process, {"lark_grammar": slow_lark(1900)}, strike)
    assert process.resolve(SMALL) == SMALL


def test_what_is_not_wanted_any_more_is_ended(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    num_looks = 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 20:
            raise Unwanted

    process.resolve(SMALL)
    with pytest.raises(Unwanted):
        process.resolve([{"name": "form", "lark_grammar": slow_lark(1900)}], look)
    assert not children(process)
    assert process.resolve(SMALL) == SMALL


def test_ctrl_c_is_not_for_it(make: Callable[..., GrammarProcess]) -> None:
    process = make()
    process.resolve(SMALL)
    (child,) = children(process)
    assert os.getpgid(child.pid) != os.getpgid(0) and os.getsid(child.pid) != os.getsid(0)


def test_it_goes_with_its_parent() -> None:
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

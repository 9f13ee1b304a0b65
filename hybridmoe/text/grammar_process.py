"""A process in which grammars are tried before this one compiles them.

What a client sends may recurse until the stack ends, or take minutes and gigabytes; there it meets
limits, and at worst ends a process that is started again for the next one. llguidance does the
same with the same grammar, so that what passed, on half the stack, is safe here. Started for the
first grammar that is not cheap; the vocabulary is handed over once.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.text.grammar_limits import CompileLimits

__all__ = ["GrammarProcess"]

_LOOK_S = 0.05  # between looks at whether the result is still wanted
_START_S = 120.0
# -I: neither the environment nor the folder it is started in decide what is imported.
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hybridmoe.text.grammar_worker import main
main()"""


class GrammarProcess:
    """Tries grammars, one at a time. From any thread."""

    def __init__(
        self, vocabulary: Callable[[], Mapping[str, Any]], limits: CompileLimits | None = None
    ) -> None:
        """vocabulary: "tokens" (bytes), "special_ids", "eos_ids", "bos_id"; called at most once."""
        self._vocabulary = vocabulary
        self._limits = limits or CompileLimits()
        self._greeting: bytes | None = None
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []  # one, or none
        weakref.finalize(self, _end, self._helpers)

    @property
    def is_busy(self) -> bool:
        """True while a grammar is tried."""
        return self._lock.locked()

    @property
    def pid(self) -> int | None:
        """Process id; None while no process runs."""
        return self._helpers[0].pid if self._helpers else None

    def resolve(
        self, parts: Sequence[Mapping[str, Any]], check: Callable[[], None] | None = None
    ) -> list[dict[str, Any]]:
        """Try a grammar; return its parts as llguidance takes them, known to compile and begin.

        check: called again and again; what it raises ends the trial at once. Errors: ConfigError
        for what does not compile, nests too deep or goes beyond a limit.
        """
        check = check or (lambda: None)
        while not self._lock.acquire(timeout=_LOOK_S):
            check()
        try:
            if not self._helpers:
                self._start(check)
            reply = self._ask(json.dumps(parts).encode(), self._limits.wall_s, check)
        finally:
            self._lock.release()
        if "error" in reply:
            raise ConfigError(reply["error"])
        resolved: list[dict[str, Any]] = reply["parts"]
        return resolved

    def close(self) -> None:
        """End the process. Any number of times; a later grammar starts another one."""
        with self._lock:
            _end(self._helpers)

    def _start(self, check: Callable[[], None]) -> None:
        if self._greeting is None:
            given = self._vocabulary()
            tokens = [token.decode("latin-1") for token in given["tokens"]]
            greeting = {**given, "tokens": tokens, **asdict(self._limits)}
            self._greeting = json.dumps(greeting).encode()
        try:
            self._helpers.append(_Helper())
            reply = self._ask(self._greeting, _START_S, check)
        except (OSError, ConfigError) as error:
            raise HybridMoeError(
                f"the process for large grammars does not start: {error}"
            ) from None
        assert reply == {}, reply

    def _ask(self, line: bytes, limit_s: float, check: Callable[[], None]) -> dict[str, Any]:
        """Send a line and wait for one; ends the process where that fails."""
        (helper,) = self._helpers
        end_s = time.monotonic() + limit_s

        def go_on() -> None:
            check()
            if time.monotonic() > end_s:
                raise ConfigError(f"takes longer than {limit_s:g} s to compile")

        try:
            reply: dict[str, Any] = json.loads(helper.exchange(line + b"\n", go_on))
        except EOFError:
            raise ConfigError(self._why(helper.exit_code())) from None
        except BaseException:
            _end(self._helpers)
            raise
        return reply

    def _why(self, exit_code: int) -> str:
        """Explain the end of the process by what its grammar did."""
        _end(self._helpers)
        if exit_code in (-signal.SIGSEGV, -signal.SIGBUS):
            return "nested too deep to compile"
        if exit_code == -signal.SIGXCPU:
            return f"takes longer than {self._limits.cpu_s} s to compile"
        return f"needs more than {self._limits.memory_bytes >> 20} MiB to compile"


class _Helper:
    """The process and the socket that leads to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_LOOK_S)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _PROGRAM, json.dumps([*map(str, sys.path)])],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is not for it
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, line: bytes, go_on: Callable[[], None]) -> bytes:
        """Send a line and receive one.

        go_on: called again and again, and may raise. Errors: EOFError where the process has ended.
        """
        rest = memoryview(line)
        reply = bytearray()
        while not reply.endswith(b"\n"):
            go_on()
            with contextlib.suppress(TimeoutError):
                try:
                    if rest:
                        rest = rest[self._socket.send(rest) :]
                        continue
                    chunk = self._socket.recv(1 << 16)
                except ConnectionError:
                    chunk = b""
                if not chunk:
                    raise EOFError
                reply += chunk
        return bytes(reply)

    def exit_code(self) -> int:
        """Exit code of a process that has closed its end of the socket."""
        return self._process.wait()

    def end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _end(helpers: list[_Helper]) -> None:
    while helpers:
        helpers.pop().end()

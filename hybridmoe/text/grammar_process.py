"""Trial compilation of large grammars in a process with limits on time, memory and stack.

A client's grammar may overflow the stack, or take minutes and gigabytes. There it can at worst end
the process, which is restarted for the next grammar. llguidance is deterministic, so that a grammar
that compiles on half the stack is safe in this process. The process starts with the first large
grammar and receives the vocabulary once.
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

_POLL_S = 0.05  # interval of cancellation checks
_START_S = 120.0
# -I: neither the environment nor the working directory decides what is imported.
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hybridmoe.text.grammar_worker import main
main()"""


class GrammarProcess:
    """Tries grammars, one at a time. Thread-safe."""

    def __init__(
        self, vocabulary: Callable[[], Mapping[str, Any]], limits: CompileLimits | None = None
    ) -> None:
        """vocabulary: "tokens" (bytes), "special_ids", "eos_ids", "bos_id"; called at most once."""
        self._vocabulary = vocabulary
        self._limits = limits or CompileLimits()
        self._hello: bytes | None = None
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
        """Try a grammar. Returns its parts, converted for llguidance and known to compile.

        check: called repeatedly; raises to cancel the trial. Errors: ConfigError for a grammar that
        does not compile, nests too deep or exceeds a limit.
        """
        check = check or (lambda: None)
        while not self._lock.acquire(timeout=_POLL_S):
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
        """End the process. Any number of times; a later grammar starts a new one."""
        with self._lock:
            _end(self._helpers)

    def _start(self, check: Callable[[], None]) -> None:
        if self._hello is None:
            given = self._vocabulary()
            tokens = [token.decode("latin-1") for token in given["tokens"]]
            hello = {**given, "tokens": tokens, **asdict(self._limits)}
            self._hello = json.dumps(hello).encode()
        try:
            self._helpers.append(_Helper())
            reply = self._ask(self._hello, _START_S, check)
        except (OSError, ConfigError) as error:
            raise HybridMoeError(
                f"the process for large grammars does not start: {error}"
            ) from None
        assert reply == {}, reply

    def _ask(self, line: bytes, limit_s: float, check: Callable[[], None]) -> dict[str, Any]:
        """Send a line and receive one. Ends the process on failure."""
        (helper,) = self._helpers
        end_s = time.monotonic() + limit_s

        def check_all() -> None:
            check()
            if time.monotonic() > end_s:
                raise ConfigError(f"takes longer than {limit_s:g} s to compile")

        try:
            reply: dict[str, Any] = json.loads(helper.exchange(line + b"\n", check_all))
        except EOFError:
            raise ConfigError(self._why(helper.exit_code())) from None
        except BaseException:
            _end(self._helpers)
            raise
        return reply

    def _why(self, exit_code: int) -> str:
        """Explain the exit code by what the grammar did."""
        _end(self._helpers)
        if exit_code in (-signal.SIGSEGV, -signal.SIGBUS):
            return "nested too deep to compile"
        if exit_code == -signal.SIGXCPU:
            return f"takes longer than {self._limits.cpu_s} s to compile"
        return f"needs more than {self._limits.memory_bytes >> 20} MiB to compile"


class _Helper:
    """The process and its socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_POLL_S)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _PROGRAM, json.dumps([*map(str, sys.path)])],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C must not reach it
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, line: bytes, check: Callable[[], None]) -> bytes:
        """Send a line and receive one.

        check: called repeatedly; may raise. Errors: EOFError if the process has ended.
        """
        rest = memoryview(line)
        reply = bytearray()
        while not reply.endswith(b"\n"):
            check()
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

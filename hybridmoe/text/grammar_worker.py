"""Main program of the trial process: compiles grammars and computes their first masks.

Started by text/grammar_process.py. Its standard input is a socket, with one JSON value a line both
ways: the vocabulary first, then grammars one by one. It ends when the socket is closed. It sets its
limits itself, so that no code runs between fork and exec.
"""

import json
import math
import resource
import socket
from collections.abc import Mapping
from typing import Any, BinaryIO

from llguidance import LLTokenizer, TokenizerWrapper

from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_build import as_parts, build, check_matcher
from hybridmoe.text.grammar_limits import check_depth, on_deep_stack

__all__ = ["main"]


def main() -> None:
    """Serve until the other end is closed."""
    with socket.socket(fileno=0) as channel, channel.makefile("rb") as file:
        start = json.loads(file.readline() or "null")
        if start is not None:
            on_deep_stack(lambda: _serve(channel, file, start), start["stack_bytes"])


def _serve(channel: socket.socket, file: BinaryIO, start: Mapping[str, Any]) -> None:
    vocabulary = _tokenizer(start)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, _address_space_bytes() + start["memory_bytes"])
    _send(channel, {})
    while line := file.readline():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used_s = math.ceil(usage.ru_utime + usage.ru_stime)
        _limit(resource.RLIMIT_CPU, used_s + start["cpu_s"])
        _send(channel, _try(vocabulary, json.loads(line)))


def _try(vocabulary: LLTokenizer, given: list[dict[str, Any]]) -> dict[str, Any]:
    """Try a grammar. Returns {"parts": ...} for llguidance, or {"error": one line}."""
    try:
        parts = as_parts(given)
        check_depth(parts)
        matcher = build(vocabulary, parts)
        if not matcher.is_stopped():
            matcher.compute_bitmask()
            check_matcher(matcher)
    except ConfigError as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "nested too deep to compile"}
    return {"parts": parts}


def _send(channel: socket.socket, value: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(value).encode() + b"\n")


def _limit(what: int, soft: int) -> None:
    """Set a soft limit, at most the hard one."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


def _tokenizer(given: Mapping[str, Any]) -> LLTokenizer:
    vocabulary = _Vocabulary(given)
    tokenizer = LLTokenizer(
        TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens), eos_token=given["eos_ids"]
    )
    vocabulary.tokenizer = tokenizer
    return tokenizer


class _Vocabulary:
    """Adapts a vocabulary to llguidance, with greedy tokenization."""

    tokenizer: LLTokenizer | None = None

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in given["tokens"]]
        self.special_token_ids = given["special_ids"]
        self.eos_token_id = min(given["eos_ids"], default=0)
        self.bos_token_id = given["bos_id"]

    def __call__(self, text: bytes) -> list[int]:
        if self.tokenizer is None:  # during construction
            return []
        return self.tokenizer.greedy_tokenize(text.decode("utf-8", "replace"))

"""Fake LLM for the command line's tests: responds at once, by rule, with the protocol of LLM.

Run as a script it is the `hybridmoe` command with that model in place of a real one; it imports
no torch then, since terminal tests start many of it.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import hybridmoe
from hybridmoe.cli.sampling_options import SAMPLING_NAMES
from hybridmoe.errors import ConfigError, ContextLengthError
from hybridmoe.placement.options import LoadOptions
from hybridmoe.text.thinking_options import ThinkingOptions


class Progress(NamedTuple):
    """As hybridmoe.Progress; tests/cli/test_chat.py holds these four equal to the real ones."""

    phase: str
    done: int
    total: int
    unit: str


class Piece(NamedTuple):
    """As hybridmoe.Piece."""

    text: str
    is_reasoning: bool


@dataclass
class Timing:
    """As hybridmoe.Timing."""

    prompt_tokens: int
    cached_tokens: int
    prompt_s: float
    generated_tokens: int
    decode_s: float
    disk_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prompt_tokens_per_s(self) -> float:
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_s

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.generated_tokens - 1) / self.decode_s


@dataclass
class Result:
    """As hybridmoe.Result."""

    text: str
    token_ids: list[int]
    finish_reason: str
    timing: Timing
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    reasoning: str = ""


class ResultStream:
    """As hybridmoe.ResultStream."""

    def __init__(self, pieces: Generator[Piece, None, None], finish: Callable[[], Result]) -> None:
        self._pieces = pieces
        self._finish = finish

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(piece.text for piece in self._pieces if not piece.is_reasoning)

    def pieces(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def result(self) -> Result:
        self.close()
        return self._finish()

    def close(self) -> None:
        self._pieces.close()


def environment() -> dict[str, str]:
    """Environment of a process that runs this script: the package may not be installed."""
    return {**os.environ, "PYTHONPATH": str(Path(hybridmoe.__file__).parent.parent)}


class FakeLLM:
    """Answers "you said X"; other answers by what the last message is.

    slow: words without end, ten a second · long: a prompt that is read without end ·
    fail: a ConfigError · escape: control characters · think: thoughts first ·
    params: its parameters · call [NAME ARGUMENTS]: a tool call
    """

    context_tokens = 4096
    can_chat = True
    expert_plan = None
    notes = ()

    def __init__(self) -> None:
        self.config = SimpleNamespace(name="fake")
        self.prompts: list[list[dict[str, Any]]] = []
        self.texts: list[str] = []
        self.thinking: ThinkingOptions | None = None
        self.summary = ["what was", " said"]
        self.params: dict[str, Any] = {}
        self.tools: Sequence[dict[str, Any]] | None = None
        self.num_open_streams = 0
        self.interrupted_after: int | None = None  # words or pieces of the prompt: then Ctrl-C
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_closed = True

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        thinking: ThinkingOptions | None = None,
        stream: bool,
        progress: Callable[[Progress], None] | None = None,
        **sampling: Any,
    ) -> ResultStream:
        assert stream
        self.thinking, self.params, self.tools = thinking, sampling, tools
        self.prompts.append([dict(message) for message in messages])
        text = messages[-1]["content"]
        if text == "fail":
            raise ConfigError("the prompt has 9999 tokens, the context 4096")
        return self._stream(text, progress, sampling)

    def generate(
        self,
        prompt: str,
        *,
        stream: bool,
        progress: Callable[[Progress], None] | None = None,
        **sampling: Any,
    ) -> ResultStream:
        assert stream
        self.texts.append(prompt)
        return self._stream(prompt, progress, sampling)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        ids = [0] * sum(len(message["content"] or "") for message in messages)
        if len(ids) > 4 * self.context_tokens:
            raise ContextLengthError(len(ids), self.context_tokens)
        return ids

    def check_thinking(self, thinking: ThinkingOptions) -> None:
        if thinking.mode in ("low", "high"):
            raise ConfigError(f"{thinking.name}: the model has no levels")

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        return {"temperature": 0.6}

    def sampling_params(self, given: dict[str, Any]) -> SimpleNamespace:
        defaults = dict.fromkeys(SAMPLING_NAMES)
        return SimpleNamespace(**{**defaults, "temperature": 0.6, "stop": (), **given})

    def expert_stats(self) -> None:
        return None

    def save_sequence(self, path: Path) -> int:
        num_tokens = 10 * len(self.prompts)
        if num_tokens:
            path.write_text(str(num_tokens))
        return num_tokens

    def restore_sequence(self, path: Path) -> int:
        if not (text := path.read_text()).isdecimal():
            raise ConfigError(f"{path.name}: damaged")
        return int(text)

    def _stream(
        self, text: str, progress: Callable[[Progress], None] | None, sampling: dict[str, Any]
    ) -> ResultStream:
        shown: list[Piece] = []

        def pieces() -> Generator[Piece, None, None]:
            self.num_open_streams += 1
            try:
                for done in itertools.count() if text == "long" else range(1):
                    self._interrupt(done)
                    if progress is not None:
                        progress(Progress("prompt", min(done, 9) * 100, 1000, "tokens"))
                    time.sleep(0.1 if text == "long" else 0)
                if text == "think":
                    shown.append(Piece("why\nnot", is_reasoning=True))
                    yield shown[-1]
                for word in self._answer(text, sampling):
                    shown.append(Piece(word, is_reasoning=False))
                    yield shown[-1]
            finally:
                self.num_open_streams -= 1

        def finish() -> Result:
            name, _, arguments = text.removeprefix("call").strip().partition(" ")
            function = {"name": name or "f", "arguments": arguments or "{}"}
            calls = [{"id": f"functions.{function['name']}:0", "function": function}]
            is_cut = sampling.get("max_tokens") == 1
            return Result(
                text="".join(piece.text for piece in shown if not piece.is_reasoning),
                token_ids=list(range(len(shown))),
                finish_reason="length" if is_cut else "stop",
                timing=Timing(123, 100, 0.125, 11, 0.25),
                tool_calls=calls if text.startswith("call") else [],
                reasoning="".join(piece.text for piece in shown if piece.is_reasoning),
            )

        return ResultStream(pieces(), finish)

    def _interrupt(self, count: int) -> None:
        if count == self.interrupted_after:
            os.kill(os.getpid(), signal.SIGINT)

    def _answer(self, text: str, sampling: dict[str, Any]) -> Iterator[str]:
        if text == "slow":
            for i in itertools.count():
                self._interrupt(i)
                time.sleep(0.1)
                yield f"w{i} "
        elif text == "escape":
            yield "a\x1b[31mred\x1b]0;title\x07\r\x9b2J\tb\n"
        elif text == "params":
            yield str(sampling)
        elif text.startswith("Summarize our conversation"):
            yield from self.summary
        elif not text.startswith("call"):
            yield "you said "
            yield text


def load(
    path: Path | None,
    options: LoadOptions,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> FakeLLM:
    """Stand in for `hybridmoe.load`."""
    assert isinstance(options, LoadOptions)
    if path is not None and path.name == "broken.gguf":
        time.sleep(0.3)
        raise ConfigError("broken.gguf: no memory for it")
    if path is not None and path.name in ("slow.gguf", "endless.gguf"):
        for done in range(10) if path.name == "slow.gguf" else itertools.cycle(range(10)):
            time.sleep(0.1)
            if progress is not None:
                progress(Progress("load", done << 30, 10 << 30, "bytes"))
    return FakeLLM()


if __name__ == "__main__":
    from hybridmoe.cli import opening
    from hybridmoe.cli.app import main

    hybridmoe.load = load
    opening.read_header = lambda _path, _options: ("fake", FakeLLM.context_tokens)
    hybridmoe.SamplingParams = dict
    sys.exit(main())

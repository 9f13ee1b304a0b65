"""Reports of why a prompt was not found in the prefix cache."""

from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import live_server
from waiting import eventually

from hybridmoe.engine.request import Usage
from hybridmoe.serve.prefix_log import PrefixLog

TEXT = "You are an agent with many tools. The number is 12345; be brief, and be kind to all."


class Log:
    """Lines of a log about prompts of texts, each with a response."""

    def __init__(self, llm: FakeLLM) -> None:
        self.lines: list[str] = []
        self._log = PrefixLog(self.lines.append)
        self._tokenizer = llm.tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def add(self, name: str, text: str, cached: int, disk: int = 0, model: str = "m") -> str:
        """Report a request; return its line."""
        usage = Usage(prompt_tokens=1, cached_tokens=cached, disk_tokens=disk)
        choice = SimpleNamespace(usage=usage, last_usage=None, token_ids=self.encode(" So it is."))
        request = SimpleNamespace(prompts=[self.encode(text)], choices_per_prompt=1)
        generation: Any = SimpleNamespace(
            request=request, choices=[choice], model_name=model, tokenizer=self._tokenizer
        )
        self._log.report(name, generation)
        return self.lines[-1]


@pytest.fixture
def log(llm: FakeLLM) -> Log:
    return Log(llm)


def test_the_first_difference_is_shown_in_its_context(log: Log) -> None:
    count = len(log.encode(TEXT))
    first = log.add("r1", TEXT, 0)
    assert first == (
        f"prefix of r1: 0 of {count} prompt tokens found; no earlier request to compare with"
    )
    log.add("r2", "Something else entirely.", 0)
    other = TEXT.replace("12345", "98765")
    ours, theirs = log.encode(other), log.encode(TEXT)
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    line = log.add("r3", other, at, at - 2)
    assert line.startswith(
        f"prefix of r3: {at} of {len(ours)} prompt tokens found ({at - 2} on disk);"
        f" it differs from r1 at token {at}: behind '"
    )
    assert " instead of '" in line and "kept" not in line
    before, ours_shown, theirs_shown = line.split("'")[1::2]
    assert TEXT.partition("12345")[0].endswith(before.rstrip("12345"))
    assert ours_shown.strip()[0] == "9" and theirs_shown.strip()[0] == "1"
    assert len(before) + len(ours_shown) < 60 < len(TEXT)  # a few tokens only


def test_a_prompt_may_continue_or_repeat_another_or_have_been_evicted(log: Log) -> None:
    count = len(log.encode(TEXT))
    log.add("r1", TEXT, 0)
    assert log.add("r2", TEXT, count - 1).endswith(
        f"{count - 1} of {count} prompt tokens found; nothing is missing"
    )
    lost = log.add("r3", TEXT, 10)
    assert lost.endswith(
        f"; the prompt of r2 begins with it; {count - 1 - 10} of these tokens were not kept"
    )
    whole = len(log.encode(TEXT)) + len(log.encode(" So it is."))
    assert f"it continues r3 after {whole} tokens" in log.add("r4", f"{TEXT} So it is. And?", whole)
    assert "no earlier request" in log.add("r5", TEXT, 0, model="other")


def test_control_characters_are_escaped_and_pieces_cut(log: Log) -> None:
    log.add("r1", "a\x1b[2J\nb" + "c" * 500, 0)
    line = log.add("r2", "a\x1b[2J\nd", 0)
    assert line.isprintable() and len(line) < 400


def test_the_endpoint_reports_each_request_that_was_run(llm: FakeLLM) -> None:
    lines: list[str] = []
    with live_server(llm, prefix_log=PrefixLog(lines.append)) as server:
        for name, stream in (("one", False), ("two", True)):
            body = {"messages": [{"role": "user", "content": f"say {name}"}], "stream": stream}
            headers = {"x-request-id": name}
            httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
        httpx2.get(f"{server.url}/v1/models")
        eventually(lambda: len(lines) == 2)  # a line comes after the response
    assert lines[0].startswith("prefix of one: 1 of ")
    assert lines[1].startswith("prefix of two: 1 of ") and "it differs from one at" in lines[1]

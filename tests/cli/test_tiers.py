"""`--expert-ram` and its kin on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_llm import environment
from waiting import HANG_S

from hybridmoe.cli.app import main


def generate(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hybridmoe", "generate", "-p", "What is 1 + 1?"]
    command += ["--temperature", "0", "--max-tokens", "20", "--ctx", "256", "--json", *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=HANG_S
    )


def test_the_response_is_the_same_and_the_cache_is_shown(tmp_path: Path) -> None:
    plain = json.loads(generate().stdout)
    assert "experts" not in plain
    profile = tmp_path / "hot.json"
    options = ("--expert-ram", "2MiB", "--expert-prefetch", "1", "--expert-profile", str(profile))
    done = generate(*options)
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == plain["token_ids"]
    assert answer["experts"]["num_slots"] == answer["experts"]["num_resident"] == 12
    counters = answer["experts"]["counters"]
    assert counters["hits"] > 0 < counters["misses"]
    plan, warning, reads = done.stderr.splitlines()[-3:]
    assert plan.startswith("hybridmoe: expert cache: 12 slots for 128 experts (3.0 of 32 a layer")
    assert reads.startswith(
        ("hybridmoe: experts are read by io_uring", "hybridmoe: experts are read by 4 threads (")
    )
    assert warning.startswith(
        "hybridmoe: warning: RAM: 12 expert slots are less than the 16 experts"
    )
    assert json.loads(profile.read_text())["format"] == "hybridmoe expert profile 1"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--expert-ram", "lots"), "'lots': expected a size such as 12GiB"),
        (("--expert-ram", "1KiB"), "--expert-ram 1024 bytes: expected at least "),
        (("--expert-prefetch", "99"), "--expert-prefetch 99: expected a whole number, 0 to 64"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: tuple[str, str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "-p", "x", *options]) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert problem in error

"""Commands of hybridmoe, run in this process."""

import pytest

from hybridmoe.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must succeed. Returns what it printed."""
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail. Returns its one line."""
    assert main(arguments) != 0
    said = capsys.readouterr().err
    assert said.startswith("hybridmoe: error: ") and said.count("\n") == 1
    return said

"""Options from the environment and config.toml: order, presets, errors that name the origin."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import pytest

from hybridmoe.cli import app
from hybridmoe.placement.options import LoadOptions


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "hybridmoe" / "config.toml"
    path.parent.mkdir()
    return path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that `plan` was given, in each run."""
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "hybridmoe.cli.plan_run.run_plan",
        lambda model, _, options: runs.append(options | {"model": model}),
    )
    return runs


def test_the_command_line_comes_first_then_environment_preset_and_file(
    config: Path, given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("ctx = 1\nport = 8080\n[presets.more]\nctx = 2\nslots = 7\n")
    assert app.main(["plan"]) == 0
    assert app.main(["plan", "--preset", "more"]) == 0
    monkeypatch.setenv("HYBRIDMOE_CTX", "3")
    assert app.main(["plan", "--preset", "more"]) == 0
    assert app.main(["plan", "--preset", "more", "-c", "4"]) == 0
    assert [run["context_tokens"] for run in given] == [1, 2, 3, 4]
    assert [run["max_running"] for run in given] == [None, 7, 7, 7]


def test_a_model_on_the_command_line_comes_before_one_of_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(
        "hybridmoe.cli.generate.open_model", lambda model, _: seen.append(model) or MagicMock()
    )
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path in paths:
        path.touch()
    config.write_text(f'model = "{paths[0]}"\n')
    app.main(["generate", "-p", "x"])
    app.main(["generate", str(paths[1]), "-p", "x"])
    monkeypatch.setenv("HYBRIDMOE_MODEL", str(paths[2]))
    app.main(["generate", "-p", "x"])
    app.main(["generate", "-m", str(paths[1]), "-p", "x"])
    assert seen == [paths[0], paths[1], paths[2], paths[1]]


def test_threads_of_the_file_yield_to_the_variable_that_the_library_reads(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LoadOptions] = []
    monkeypatch.setattr(
        "hybridmoe.cli.generate.open_model", lambda _, options: seen.append(options) or MagicMock()
    )
    config.write_text("threads = 3\n")
    monkeypatch.delenv("HYBRIDMOE_THREADS", raising=False)
    app.main(["generate", "-p", "x"])
    monkeypatch.setenv("HYBRIDMOE_THREADS", "2")
    app.main(["generate", "-p", "x"])
    assert [options.num_threads for options in seen] == [3, None]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CTX", "many"),
        ("CTX", "-5"),
        ("TOP_P", "7"),
        ("RAW", "perhaps"),
        ("MODEL", "no such model"),
    ],
)
def test_a_wrong_value_names_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"HYBRIDMOE_{variable}", value)
    assert app.main(["generate", "-p", "x"]) != 0
    error = capsys.readouterr().err
    assert f"HYBRIDMOE_{variable}: " in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ctx = 'a'", "ctx='a': expected a whole number"),
        ("ctx = true", "ctx=True: expected a whole number"),
        ("ignore-eos = 1", "ignore-eos=1: expected true or false"),
        ("stop = [[1]]", "stop=[1]: expected a text"),
        ("ctx = -5", "ctx: context_tokens=-5"),
        ("top_p = 7", "top_p: top_p=7"),
        ("contxt = 5", "contxt: no such option"),
        ("[server]\nctx = 5", "server: no such option"),
        ("ctx = ", "Invalid value (at"),
        ("presets = 4", "presets: expected tables"),
        ("[presets.a]\nthink = 'so'", "presets.a.think: 'so' is not one of"),
        ("[presets.b]", "no preset a; there are: b"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_key(
    text: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    preset = ["--preset", "a"] if "[presets" in text else []
    assert app.main(["generate", "-p", "x", *preset]) != 0
    error = capsys.readouterr().err
    assert f"{config}: " in error and words in error and error.count("\n") == 1


def test_every_option_has_a_variable_of_its_own() -> None:
    context = click.Context(app.cli)
    for name in app.COMMANDS:
        command = app.cli.get_command(context, name)
        assert command is not None
        variables = [
            v for p in command.params for v in p.envvar or () if not isinstance(p.envvar, str)
        ]
        assert len(variables) == len(set(variables))
        without = [p.opts for p in command.params if isinstance(p, click.Option) and not p.envvar]
        assert all(flags in (["-m"], ["--model"], ["-t", "--threads"]) for flags in without), (
            without
        )

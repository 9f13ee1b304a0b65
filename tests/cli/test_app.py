"""Command line: help without heavy imports, errors as one line and an exit code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import fake_llm
import pytest
from waiting import HANG_S

import hybridmoe
from hybridmoe.cli import app, foreign_options
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import GGUFError

HEAVY = ("torch", "numpy", "llama_cpp", "jinja2", "rich", "prompt_toolkit", "gguf")
FAKE = [sys.executable, fake_llm.__file__]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybridmoe, "load", fake_llm.load, raising=False)


def run(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*FAKE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=fake_llm.environment(),
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hybridmoe.cli.app import main; main(['--help']);"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")
    assert all(name in done.stdout for name in app.COMMANDS)


def test_no_help_imports_what_takes_time() -> None:
    code = (
        "import sys; from hybridmoe.cli.app import COMMANDS, main\n"
        "for name in [*COMMANDS, 'bench cache']: main([*name.split(), '--help'])\n"
        f"heavy = {(*HEAVY, 'numba', 'fastapi', 'huggingface_hub', 'hybridmoe._C')!r}\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n"), done.stderr


def test_no_completion_imports_what_takes_time() -> None:
    code = (
        "import os, sys; from hybridmoe.cli.app import COMMANDS, main\n"
        "os.environ['_HYBRIDMOE_COMPLETE'] = 'bash_complete'\n"
        "for name in [*COMMANDS, 'bench cache']:\n"
        "    for begun in ('--', ''):\n"
        "        words = ['hybridmoe', *name.split(), begun]\n"
        "        os.environ |= {'COMP_WORDS': ' '.join(words), 'COMP_CWORD': str(len(words) - 1)}\n"
        "        try: main([])\n"
        "        except SystemExit: pass\n"
        "heavy = ('torch', 'jinja2', 'rich', 'prompt_toolkit', 'numba', 'fastapi')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("plain,--help") >= len(app.COMMANDS), done.stderr
    assert done.stdout.endswith("\n[]\n"), done.stdout


@pytest.mark.parametrize("command", [[], ["--debug"], ["bench"]])
def test_a_command_that_is_asked_for_nothing_shows_its_help(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(command) == 0
    out, err = capsys.readouterr()
    name = " ".join(["hybridmoe", *command]).removesuffix(" --debug")
    assert out.startswith(f"Usage: {name} ") and "Commands:" in out
    assert err == ""


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    assert capsys.readouterr().out.partition("Examples:")[2].count("hybridmoe ") == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("run", "hybridmoe chat MODEL"),
        ("show", "hybridmoe inspect"),
        ("ps", "/v1/models"),
        ("version", "hybridmoe --version"),
        ("chta", "did you mean chat?"),
        ("k2.gguf", "did you mean hybridmoe chat 'k2.gguf'?"),
        ("zzzz", "known: chat, generate"),
    ],
)
def test_a_command_that_is_not_known_is_pointed_to_one(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([name]) == 2
    err = capsys.readouterr().err
    assert hint in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chat", "-ngl", "99"], "no option -ngl; here: leave it out: GPUs hold the dense part"),
        (["chat", "--n-cpu-moe=10"], "no option --n-cpu-moe; here: leave it out"),
        (["serve", "-ot", "exps=CPU"], "no option -ot; here: --place REGEX=cpu"),
        (["chat", "m", "--keep-alive", "5m"], "here: hybridmoe serve --idle-unload 15m"),
        (["generate", "-hf", "a/b"], "here: hybridmoe pull OWNER/REPO:QUANT"),
    ],
)
def test_options_of_other_programs_are_pointed_to_ours(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == 2
    err = capsys.readouterr().err
    assert hint in err and err.count("\n") == 1


def test_hints_name_options_that_exist() -> None:
    commands = [app._imported(name) for name in ("chat", "generate", "serve", "pull")]
    own = {flag for one in commands for parameter in one.params for flag in parameter.opts}
    for flag, hint in foreign_options._HINT_OF.items():
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", hint)) <= own, hint
        assert foreign_options.hint_on([flag], ()) and not foreign_options.hint_on([flag], {flag})
    assert foreign_options.hint_on(["--", "-ngl"], own) is None
    assert foreign_options.hint_on(["-p", "x", "-n", "5"], own) is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "--ctx", "999999"], "--ctx 999999: expected 1 to 2048"),
        (["chat", "--temp", "99", "hi!"], "--temperature 99: expected 0 to 5 (higher, every token"),
        (["generate", "-p", "x", "--repetition-penalty", "9"], "--repetition-penalty 9: expected"),
        (["generate", "-p", "x", "--top-p", "2"], "--top-p 2.0: expected a number from 0 to 1"),
        (["serve", "--api-key-file", "/none"], "--api-key-file /none: No such file or directory"),
    ],
)
def test_wrong_values_name_the_option(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == 1
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([name, "--help"]) == 0
    assert f"Usage: hybridmoe {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["--nope"], ["chat", "--nope"], ["chat", "--top-k", "x"], ["generate"],
     ["generate", "-p", "x", "--raw", "--system", "y"], ["generate", "-p", "x", "--raw", "--chat"],
     ["chat", "a.gguf", "b.gguf"]],
)  # fmt: skip
def test_wrong_use_is_one_line_and_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hybridmoe: error: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (GGUFError("x.gguf: broken\n here"), "x.gguf: broken here"),
        (FileNotFoundError(2, "No such file", "y"), "y: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ZeroDivisionError("oops"), "internal error: ZeroDivisionError: oops (--debug"),
    ],
)
def test_failures_are_one_line_and_a_traceback_only_with_debug(
    error: Exception,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hybridmoe, "load", fail, raising=False)
    assert app.main(["generate", "-p", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"hybridmoe: error: {line}") and err.count("\n") == 1
    for arguments in (["--debug", "generate"], ["generate", "--debug"]):
        assert app.main([*arguments, "-p", "x"]) == 1
        assert "Traceback" in capsys.readouterr().err


def test_parameters_are_checked_before_the_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybridmoe, "load", None, raising=False)
    assert app.main(["generate", "-p", "x", "--top-p", "7"]) == 1
    assert "--top-p 7.0" in capsys.readouterr().err


def test_interrupt_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hybridmoe, "load", interrupt, raising=False)
    assert app.main(["generate", "-p", "x"]) == 130


def test_generate_prints_the_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["generate", "-p", "Once upon"]) == 0
    assert capsys.readouterr() == ("you said Once upon\n", "")


@pytest.mark.parametrize(
    ("options", "can_chat", "is_asked", "limit"),
    [
        ([], True, True, 4096),
        (["--chat"], True, True, 4096),
        (["--system", "S"], True, True, 4096),
        (["--raw"], True, False, 256),
        ([], False, False, 256),
        (["--chat"], False, True, 4096),  # which a real model refuses, with the reason
        (["--raw", "--max-tokens", "7"], True, False, 7),
        (["--max-tokens", "7"], True, True, 7),
    ],
)
def test_generate_asks_by_the_template_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    can_chat: bool,
    is_asked: bool,
    limit: int,
) -> None:
    llm = fake_llm.FakeLLM()
    llm.can_chat = can_chat
    monkeypatch.setattr(hybridmoe, "load", lambda *_, **__: llm, raising=False)
    assert app.main(["generate", "-p", "params", *options]) == 0
    out, err = capsys.readouterr()
    assert out == str({"max_tokens": limit}) + "\n"
    assert ("knows conversations only" in err) == ("--raw" in options)
    assert ("continued as plain text" in err) == (not is_asked and "--raw" not in options)
    asked = [{"role": "user", "content": "params"}]
    system = [{"role": "system", "content": "S"}] if "--system" in options else []
    assert llm.prompts == ([[*system, *asked]] if is_asked else [])
    assert llm.texts == ([] if is_asked else ["params"])


def test_generate_says_that_its_own_limit_cut_the_response_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridmoe.cli.generate._MAX_RESPONSE", 1)
    assert app.main(["generate", "-p", "x"]) == 0
    assert "raise --max-tokens" in capsys.readouterr().err
    assert app.main(["generate", "-p", "x", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_generate_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["generate", "m.gguf", "--system", "S", "-p", "é", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["text"] == "you said é" and out["model"] == "fake"
    assert out["token_ids"] == [0, 1] and out["finish_reason"] == "stop"
    assert out["prompt_tokens"] == 123 and out["timing"]["decode_tokens_per_s"] == 40.0


def test_only_given_options_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["generate", "-p", "params"]) == 0
    assert capsys.readouterr().out == "{'max_tokens': 4096}\n"
    options = {
        "--temperature 0": ("temperature", 0.0),
        "--temperature-last": ("temperature_last", True),
        "--top-k 5": ("top_k", 5),
        "--top-p 0.5": ("top_p", 0.5),
        "--min-p 0.1": ("min_p", 0.1),
        "--typical-p 0.9": ("typical_p", 0.9),
        "--top-n-sigma 1.5": ("top_n_sigma", 1.5),
        "--xtc-probability 0.5": ("xtc_probability", 0.5),
        "--xtc-threshold 0.2": ("xtc_threshold", 0.2),
        "--repetition-penalty 1.1": ("repetition_penalty", 1.1),
        "--repeat-last-n 64": ("repeat_last_n", 64),
        "--presence-penalty 1": ("presence_penalty", 1.0),
        "--frequency-penalty 2": ("frequency_penalty", 2.0),
        "--dry-multiplier 0.8": ("dry_multiplier", 0.8),
        "--dry-base 1.5": ("dry_base", 1.5),
        "--dry-allowed-length 3": ("dry_allowed_length", 3),
        "--dry-penalty-last-n 99": ("dry_penalty_last_n", 99),
        "--dry-sequence-breaker : --dry-sequence-breaker ;": (
            "dry_sequence_breakers", [":", ";"],
        ),
        "--seed 3": ("seed", 3),
        "--min-tokens 2": ("min_tokens", 2),
        "--max-tokens 4": ("max_tokens", 4),
        "--stop a --stop b": ("stop", ["a", "b"]),
        "--stop-token-id 7": ("stop_token_ids", [7]),
        "--ignore-eos": ("ignore_eos", True),
    }  # fmt: skip
    expected = dict(options.values())
    assert {*expected, "logit_bias"} == set(SamplingParams.names())
    assert app.main(["generate", "-p", "params", *" ".join(options).split()]) == 0
    assert capsys.readouterr().out.strip() == str(expected)


def test_a_piped_message_gets_the_response_alone() -> None:
    done = run("chat", stdin="line one\nline two\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "you said line one\nline two\n", "")
    done = run("chat", stdin="  \n")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "hybridmoe: error: standard input is empty; expected a message\n"


def test_one_question_gets_the_response_alone(tmp_path: Path) -> None:
    file = tmp_path / "build.log"
    file.write_text("it failed\n")
    for arguments, stdin, message in (
        (["What is it?"], "", "What is it?"),
        (["-m", "m.gguf", "what", "now"], "", "what now"),
        (["m.gguf", "now"], "", "now"),
        (["-p", "hello"], "", "hello"),
        (["What failed?"], "a log", "standard input:\n```\na log\n```\n\nWhat failed?"),
        (["Why?", "-f", str(file)], "", "build.log:\n```\nit failed\n```\n\nWhy?"),
        (["-f", str(file)], "", "it failed"),
    ):
        done = run("chat", *arguments, stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"you said {message}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["hello"], 1, "as a message: hybridmoe chat -p hello"),
        (["a.gguf", "b.gguf"], 2, "two models"),
        ([""], 2, "MESSAGE is empty"),
        (["-m", "", "x"], 1, "the model's name is empty"),
        (["What is it?", "-p", "x"], 2, "both MESSAGE and -p"),
        (["-f", "absent.txt"], 1, "absent.txt: No such file"),
    ],
)
def test_a_message_that_is_not_clear_is_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["chat", *arguments]) == code
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_options_as_llama_cpp_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["-m", "m.gguf", "-c", "64", "-t", "2", "-n", "5", "-p", "params", "-ctk", "f16"]
    given += ["--temp", "0.5"]
    assert app.main(["generate", *given]) == 0
    assert capsys.readouterr().out == "{'temperature': 0.5, 'max_tokens': 5}\n"
    assert app.main(["generate", "a.gguf", "-m", "b.gguf", "-p", "x"]) == 2
    assert "-m" in capsys.readouterr().err
    assert app.main(["serve", "--help"]) == 0
    assert "-np" in capsys.readouterr().out


def test_generate_keeps_reasoning_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["generate", "--chat", "-p", "think", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["reasoning"]) == ("you said think", "why\nnot")
    assert app.main(["generate", "--chat", "-p", "think"]) == 0
    assert capsys.readouterr().out == "you said think\n"
    assert run("chat", stdin="think").stdout == "you said think\n"


def test_generate_reads_standard_input() -> None:
    assert run("generate", "-p", "-", stdin="abc").stdout == "you said abc\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"'{FAKE[0]}' '{FAKE[1]}' generate -p slow | head -c 3"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=fake_llm.environment()
    )
    assert (done.stdout, done.stderr) == ("w0 ", "")


def test_running_the_package_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hybridmoe", "inspect", str(tmp_path / "none.gguf")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("hybridmoe: error: none.gguf") and done.stderr.count("\n") == 1

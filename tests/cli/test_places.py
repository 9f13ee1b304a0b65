"""Machines as containers have them: no home, read-only packages, closed streams, odd paths."""

import os
import subprocess
import sys
from pathlib import Path

import fake_llm
import numpy as np
import pytest

import hybridmoe
from hybridmoe.cli.pastes import Pastes
from hybridmoe.cli.prompt import _history
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.state_folder import state_folder

FAKE = f"'{sys.executable}' '{fake_llm.__file__}'"


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, env=fake_llm.environment()
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_obstacle(closed: str) -> None:
    done = shell(f"{FAKE} generate -p x {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if closed.startswith(">") else "you said x\n")


@pytest.mark.parametrize("command", ["chat", "generate -p -"])
def test_a_byte_order_mark_is_no_text(command: str) -> None:
    assert shell(f"printf '\\357\\273\\277Hi' | {FAKE} {command}").stdout == "you said Hi\n"


def test_a_full_standard_output_is_one_line() -> None:
    done = shell(f"{FAKE} generate -p x > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_without_a_home_history_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.history import InMemoryHistory

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert isinstance(_history(Pastes(), state_folder()), InMemoryHistory)


def test_a_history_on_a_full_disk_is_no_error(tmp_path: Path) -> None:
    history = _history(Pastes(), tmp_path)
    (tmp_path / "history").unlink()
    (tmp_path / "history").symlink_to("/dev/full")
    history.store_string("a message")


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"bad\xff.gguf")
    model.symlink_to(demo_path())
    with hybridmoe.load(model, context_tokens=64) as llm:
        assert llm.generate("a", max_tokens=1).token_ids


@pytest.mark.parametrize("where", ["absent/hot.json", "folder", "file/hot.json"])
def test_a_profile_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        hybridmoe.load(expert_ram="2MiB", expert_profile=tmp_path / where)
    HotProfile.check_writable(tmp_path / "hot.json")
    assert not (tmp_path / "hot.json").exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_model_used_after_a_fork_says_so() -> None:
    with hybridmoe.load(context_tokens=64) as llm:
        logits = llm.logits([1, 2])
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # no test may go on in here
            said = []
            for use in (lambda: llm.generate("a", max_tokens=1), lambda: llm.logits([1, 2])):
                try:
                    use()
                except HybridMoeError as error:
                    said.append(str(error))
            llm.close()
            os.write(writer, "\n".join(said).encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read().split("\n")
        os.waitpid(child, 0)
        assert len(said) == 2
        assert all("before this process was forked" in line for line in said)
        assert np.array_equal(llm.logits([1, 2]), logits)  # the parent's model goes on


def test_texts_of_other_encodings() -> None:
    def said(data: bytes) -> "tuple[int, str, str]":
        done = subprocess.run(
            [sys.executable, fake_llm.__file__, "chat"],
            input=data,
            capture_output=True,
            env=fake_llm.environment(),
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    assert said("Grüße".encode("utf-16")) == (0, "you said Grüße\n", "")
    assert said("Gr\ufffd".encode()) == (0, "you said Gr\ufffd\n", "")
    code, out, err = said("Grüße".encode("latin-1"))
    assert (code, out) == (0, "you said Gr\ufffd\ufffde\n")
    assert err.startswith("hybridmoe: standard input: not UTF-8 throughout;")
    code, out, err = said(b"a\0b")
    assert (code, err) == (1, "hybridmoe: error: standard input: not a text file\n")

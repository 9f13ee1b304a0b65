"""`hybridmoe pull` against a hub on the loopback interface: all parts, checked, continued."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import refusal, run
from hub_server import REPO, HubServer, hub_server
from tiny_gguf import split_file, write_tiny

from hybridmoe.cli.app import main
from hybridmoe.gguf.outline import read_outline
from hybridmoe.library import download

PARTS = [f"Q4_K/tiny-Q4_K-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository with a model in three parts, one in one, and files beside them."""
    folder = tmp_path_factory.mktemp("repo")
    write_tiny(folder / "tiny-Q4_K.gguf", layers=2)
    whole = (folder / "tiny-Q4_K.gguf").read_bytes()
    parts = [part.read_bytes() for part in split_file(folder / "tiny-Q4_K.gguf", 3)]
    others = {"README.md": b"#", "mmproj-F16.gguf": b"GGUF", "tiny-Q8_0.gguf": whole}
    return {**dict(zip(PARTS, parts, strict=True)), **others}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(dict(files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield hub


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder; the plan's verdict only reads the header that was downloaded."""
    monkeypatch.setenv("HYBRIDMOE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(
        "hybridmoe.cli.pull_run.verdict_of",
        lambda path: f"runs: {read_outline(path).config.num_layers} layers",
    )
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return tmp_path / "models" / REPO


def test_all_parts_of_a_quantization_come_after_the_verdict(
    hub: HubServer, folder: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "pull", f"https://huggingface.co/{REPO}:q4_k", "--yes")
    assert said == "tiny-Q4_K: runs: 2 layers\nready: hybridmoe chat tiny-Q4_K\n"
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == [folder / p for p in PARTS]
    assert all((folder / part).read_bytes() == files[part] for part in PARTS)
    assert "complete, 3 of 3 parts" in run(capsys, "list")
    assert "all of tiny-Q4_K is there" in run(capsys, "pull", f"{REPO}:Q4_K")
    run(capsys, "rm", f"{REPO}:q4_k", "--yes")
    assert not folder.exists()


def test_an_interrupted_download_goes_on_where_it_was(
    hub: HubServer, folder: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    part = folder / (PARTS[1] + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(files[PARTS[1]][:5000])
    assert "incomplete: 0 of 3 parts" in run(capsys, "list")
    hub.cuts = [100_000, 1000, 2000]  # the first is of the header
    run(capsys, "pull", f"{REPO}:Q4_K", "--yes")
    assert all((folder / part).read_bytes() == files[part] for part in PARTS)
    ranges = [ranges for path, ranges, _ in hub.requests if path == f"/cdn/{PARTS[1]}"]
    assert "bytes=5000-" in ranges and not part.exists()


def test_a_hub_without_ranges_begins_anew(
    hub: HubServer, folder: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.has_ranges, hub.cuts = False, [100_000, 1000]
    run(capsys, "pull", f"{REPO}:Q8_0", "--yes")
    assert (folder / "tiny-Q8_0.gguf").read_bytes() == files["tiny-Q8_0.gguf"]


def test_a_wrong_checksum_leaves_nothing(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.wrong_sums = True
    assert "its SHA-256 is not the hub's" in refusal(capsys, "pull", f"{REPO}:Q8_0", "--yes")
    assert not any(path.is_file() for path in folder.rglob("*"))


def test_a_token_is_not_sent_to_another_host(
    hub: HubServer, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_server(dict(files)) as other:
        hub.cdn = other.url
        run(capsys, "pull", f"{REPO}:Q8_0", "--yes")
        assert {key for _, _, key in hub.requests} == {"Bearer secret"}
        assert {key for _, _, key in other.requests} == {""}


def test_a_damaged_header_is_seen_before_the_download(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["tiny-Q8_0.gguf"] = b"GGUF"
    assert "tiny-Q8_0.gguf: version: " in refusal(capsys, "pull", f"{REPO}:Q8_0", "--yes")
    assert not folder.exists()


def test_the_quantizations_are_listed(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", REPO]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["quant", "size", "parts"]
    assert {line.split()[0] for line in said.out.splitlines()[1:]} == {"Q4_K", "Q8_0"}
    assert f"which quantization? hybridmoe pull {REPO}:Q" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((f"{REPO}:Q4_K",), "to download: --yes downloads without asking"),
        ((f"{REPO}:Q5_K",), "no such quantization; expected one of"),
        (("me/Other-GGUF",), "me/Other-GGUF: no such repository or file on http://127"),
        (("me",), "expected a repository as OWNER/NAME"),
        (("../../x:Q4_0",), "expected a repository as OWNER/NAME"),
        (("moonlight",), "no repository of it is known here"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(
    hub: HubServer, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refusal(capsys, "pull", *arguments)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "the token was not accepted"), (503, "cannot be reached"), (410, "status 410")],
)
def test_a_hub_that_refuses_is_one_line(
    hub: HubServer, capsys: pytest.CaptureFixture[str], status: int, words: str
) -> None:
    hub.status = status
    assert words in refusal(capsys, "pull", REPO)


def test_without_a_network_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    said = refusal(capsys, "pull", "kimi-k2")
    assert "127.0.0.1:9 cannot be reached (Connection refused): is this machine on the" in said


def test_a_full_disk_is_seen_before_the_download(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert "1.00 MiB are free in " in refusal(capsys, "pull", f"{REPO}:Q4_K", "--yes")
    assert not any("/cdn/" in path for path, _, _ in hub.requests)


def test_paths_that_leave_the_folder_are_refused(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["../../evil-Q2_K.gguf"] = b"GGUF"
    assert "is not readable" in refusal(capsys, "pull", f"{REPO}:Q4_K", "--yes")

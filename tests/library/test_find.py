"""A model is found by path, folder, name, its beginning, or `last`; else one line helps."""

from pathlib import Path

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.library.find import find_model, stored_model
from hybridmoe.library.last_use import note_use, times_of_use
from hybridmoe.library.stored_model import quant_of

FILES = (
    "unsloth/Kimi-K2-Instruct-GGUF/Q4_K_M/Kimi-K2-Instruct-Q4_K_M-00001-of-00002.gguf",
    "unsloth/Kimi-K2-Instruct-GGUF/Q4_K_M/Kimi-K2-Instruct-Q4_K_M-00002-of-00002.gguf",
    "unsloth/Kimi-K2-Instruct-GGUF/Kimi-K2-Instruct-UD-Q2_K_XL.gguf",
    "unsloth/Kimi-K2-Instruct-GGUF/mmproj-F16.gguf",
    "someone/Moonlight-16B-GGUF/moonlight.q8_0.gguf",
    "plain.gguf",
    "plain-too.gguf",
    ".cache/hidden.gguf",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with files of every kind, and a working folder without any."""
    root = tmp_path / "models"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"GGUF")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HYBRIDMOE_MODELS", str(root))
    return root


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Kimi-K2-Instruct-Q4_K_M", 0),
        ("kimi-k2-instruct-q4_k_m.gguf", 0),
        ("unsloth/Kimi-K2-Instruct-GGUF:q4_k_m", 0),
        ("kimi-k2-instruct:q4_k_m", 0),
        ("kimi-k2-instruct-ud", 2),
        ("Kimi-K2-Instruct-GGUF:UD-Q2_K_XL", 2),
        ("moonlight", 4),
        ("someone/moonlight-16b", 4),
        ("plain", 5),
    ],
)
def test_names_are_found(folder: Path, text: str, index: int) -> None:
    assert find_model(text) == stored_model(text) == folder / FILES[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kimi", "kimi: 2 models are called so: Kimi-K2-Instruct-Q4_K_M, Kimi-K2-Instruct-UD-"),
        ("kimi-k2-instruct-gguf", "2 models are called so"),
        ("moonlihgt", "did you mean moonlight.q8_0?"),
        ("instruct-q4", "did you mean Kimi-K2-Instruct-Q4_K_M?"),
        ("zzz", "and no model of that name in "),
        ("What is 2+2?", "What is 2+2?: no such file in "),
        ("https://example.org/a/b.gguf", "b.gguf: no such file; hybridmoe pull OWNER/REPO:QUANT"),
        ("hf.co/unsloth/x:Q4_K_M", ": no such file; hybridmoe pull"),
        ("unsloth/Other-GGUF:Q4_K_M", ": no such file; hybridmoe pull"),
        ("unsloth/Other-GGUF", ": no such file; hybridmoe pull"),
        ("last", "no model was used yet"),
        ("", "the model's name is empty"),
    ],
)
def test_what_is_not_found_is_explained(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_model(text)
    assert words in str(caught.value)


def test_a_file_comes_before_a_name_and_a_missing_path_is_left_to_the_reader() -> None:
    Path("plain").write_bytes(b"GGUF")
    assert find_model("plain") == Path("plain")
    Path("here").mkdir()
    for path in ("nowhere/x.gguf", "here/x:1", "/nowhere/blobs/sha256-12", "../a/b"):
        assert find_model(path) == Path(path)
    assert stored_model("nowhere/x.gguf") is None and stored_model("What is 2+2?") is None


def test_a_folder_stands_for_its_only_model_or_lists_them(folder: Path) -> None:
    assert find_model(str(folder / "someone")) == folder / FILES[4]
    with pytest.raises(ConfigError, match=r"5 models: .*Q4_K_M-00001-of-00002.gguf, .*plain.gguf"):
        find_model(str(folder))
    with pytest.raises(ConfigError, match="a folder without a GGUF file"):
        find_model(".")


def test_last_is_the_model_that_was_used_last_and_still_exists(folder: Path) -> None:
    for index in (0, 5, 4):
        note_use(folder / FILES[index])
    assert find_model("last") == folder / FILES[4] and len(times_of_use()) == 3
    (folder / FILES[4]).unlink()
    assert find_model("last") == folder / FILES[5]


def test_damaged_notes_of_use_are_ignored(state_folder: Path) -> None:
    (state_folder / "hybridmoe").mkdir(parents=True)
    (state_folder / "hybridmoe" / "models.json").write_text("[1")
    assert times_of_use() == {}


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Kimi-K2-Instruct-UD-Q2_K_XL", "UD-Q2_K_XL"), ("a.IQ4_XS", "IQ4_XS"), ("m-BF16", "BF16"),
        ("moonlight.q8_0", "Q8_0"), ("Kimi-K2", ""), ("x-MXFP4_MOE", "MXFP4_MOE"),
    ],
)  # fmt: skip
def test_the_quantization_is_at_the_end_of_a_name(name: str, quant: str) -> None:
    assert quant_of(name) == quant

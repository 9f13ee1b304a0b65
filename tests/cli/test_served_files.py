"""Files of a server: their names, and options of each one's own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hybridmoe
from hybridmoe.cli.served_files import ServedFiles, named_files
from hybridmoe.errors import ConfigError, TemplateError
from hybridmoe.placement.options import LoadOptions
from hybridmoe.text.thinking_options import ThinkingOptions

A, B = Path("a.gguf"), Path("b.gguf")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path | None, LoadOptions]]:
    """Files and options of loads, none of which happens."""
    loads: list[tuple[Path | None, LoadOptions]] = []

    def load(path: Path | None, options: LoadOptions, *, progress: Any) -> Any:
        loads.append((path, options))
        return SimpleNamespace()

    monkeypatch.setattr(hybridmoe, "load", load)
    return loads


def served(files: dict[str, Path | None], max_loaded: int = 1, **options: Any) -> ServedFiles:
    return ServedFiles(files, LoadOptions(**options), max_loaded, lambda line: None)


class Textual:
    """A model that only continues text."""

    def __init__(self) -> None:
        self.is_closed = False

    def check_thinking(self, _: Any) -> None:
        raise TemplateError("the file has no chat template")

    def close(self) -> None:
        self.is_closed = True


def load(files: ServedFiles, *names: str) -> None:
    for name in names:
        files.load(name, lambda progress: None)


def test_the_first_file_is_the_default_one() -> None:
    assert named_files(None, (), ()) == {"hybridmoe-demo": None}
    assert named_files(A, (), ()) == {"a": A}
    assert named_files(A, ("x", "y"), ()) == {"x": A}
    assert [*named_files(A, ("x",), ("b=b.gguf",)).items()] == [("x", A), ("b", B)]
    assert [*named_files(None, (), ("b=b.gguf", "c/d=x=y.gguf"))] == ["b", "c/d"]
    assert named_files(None, ("demo",), ("b=b.gguf",)) == {"demo": None, "b": B}


@pytest.mark.parametrize("pair", ["b.gguf", "=b.gguf", "b=", " =b.gguf", ""])
def test_a_model_needs_a_name_and_a_file(pair: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=FILE"):
        named_files(None, (), (pair,))


@pytest.mark.parametrize("pairs", [("a=b.gguf",), ("y=b.gguf",), ("c=b.gguf", "c=b.gguf")])
def test_a_name_is_for_one_file(pairs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="is taken"):
        named_files(A, ("a", "y"), pairs)


def test_a_trace_is_not_overwritten_by_the_next_load(
    loads: list[tuple[Path | None, LoadOptions]],
) -> None:
    load(served({"a": A}, trace=Path("run.trace")), "a", "a", "a")
    assert [str(options.trace) for _, options in loads] == [
        "run.trace", "run.2.trace", "run.3.trace",
    ]  # fmt: skip


def test_each_of_several_models_has_its_own_trace_and_profile(
    loads: list[tuple[Path | None, LoadOptions]], tmp_path: Path
) -> None:
    options = {"trace": tmp_path / "run", "expert_profile": tmp_path / "hot.json"}
    load(served({"a": A, "b/x": B}, **options), "a", "b/x", "a")
    assert [path for path, _ in loads] == [A, B, A]
    assert [options.trace for _, options in loads] == [
        tmp_path / "run.a", tmp_path / "run.b_x", tmp_path / "run.a.2",
    ]  # fmt: skip
    assert [options.expert_profile for _, options in loads] == [
        tmp_path / "hot.a.json", tmp_path / "hot.b_x.json", tmp_path / "hot.a.json",
    ]  # fmt: skip
    load(served({"a": A, "b": B}, expert_profile=Path("off")), "a")
    assert loads[-1][1].expert_profile == Path("off")


def test_a_limit_on_loaded_models_counts_before_memory() -> None:
    assert served({"a": A}).fit(["a"])
    assert not served({"a": A, "b": B}).fit(["a", "b"])


def test_a_model_without_a_chat_template_is_served_unless_it_should_think(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = Textual()
    monkeypatch.setattr(hybridmoe, "load", lambda *_, **__: llm)
    unasked = ThinkingOptions(name="--think")
    load(ServedFiles({"a": A}, LoadOptions(), 1, print, unasked), "a")
    assert not llm.is_closed
    with pytest.raises(TemplateError):
        load(ServedFiles({"a": A}, LoadOptions(), 1, print, ThinkingOptions(mode="on")), "a")
    assert llm.is_closed


@pytest.mark.usefixtures("loads")
def test_models_fit_by_their_plans() -> None:
    files = ServedFiles({"a": None, "b": None}, LoadOptions(context_tokens=64), None, print)
    load(files, "a")  # before which nothing is known of memory
    assert files.fit(["a", "b"])

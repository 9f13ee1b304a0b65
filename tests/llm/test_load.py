"""`load` closes what it has opened, in reverse, wherever it fails; and `close` all of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.engine.engine import Engine
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.llm import load as loading
from hybridmoe.placement.residency import Residency
from hybridmoe.text.tokenizer import Tokenizer

OPENED = ["file", "tokenizer", "residency", "trace", "engine"]
CLASSES = dict(zip(OPENED, (GGUFFile, Tokenizer, Residency, TraceWriter, Engine), strict=True))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was closed, in order."""
    names: list[str] = []

    def noting(name: str, close: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(self: Any) -> None:
            names.append(name)
            close(self)

        return run

    for name, owner in CLASSES.items():
        monkeypatch.setattr(owner, "close", noting(name, owner.close))
    return names


@pytest.mark.parametrize(
    ("step", "num_open"),
    [("plan_share", 1), ("Tokenizer", 1), ("place", 2), ("open_trace", 3), ("Engine", 4),
     ("read_ahead", 5), ("LLM", 5)],
)  # fmt: skip
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_step_that_fails_closes_the_earlier_ones(
    closed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    step: str,
    num_open: int,
    error: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, step, fail)
    with pytest.raises(error):
        hybridmoe.load(context_tokens=64, trace=tmp_path / "t", progress=lambda _: None)
    assert closed == OPENED[:num_open][::-1]


def test_closing_closes_all_even_where_the_profile_cannot_be_saved(
    closed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted = Residency.close

    def fail(self: Residency) -> None:
        noted(self)
        raise hybridmoe.ConfigError("no space")

    monkeypatch.setattr(Residency, "close", fail)
    llm = hybridmoe.load(context_tokens=64, trace=tmp_path / "t")
    with pytest.raises(hybridmoe.ConfigError, match="no space"):
        llm.close()
    assert closed == OPENED[::-1]
    llm.close()
    assert len(closed) == len(OPENED)


@pytest.mark.parametrize("name", ["IO", "HOST_CALLS", "PIN", "THREADS", "NUMA_NODES"])
def test_a_bad_variable_is_an_error_before_the_file_is_opened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"HYBRIDMOE_{name}", "x")
    with pytest.raises(ConfigError, match=f"HYBRIDMOE_{name}='x': expected"):
        hybridmoe.load("no file", device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("models")
    first, second = folder / "first.gguf", folder / "second.gguf"
    for seed, path in enumerate((first, second)):
        write_tiny(path, variant="k2", seed=seed)
    return first, second


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({}, True),
        ({"device": "cpu", "max_running": 2}, True),
        ({"kv_type": "int8"}, False),
        ({"isa": "scalar"}, False),
        ({"other": True}, False),
    ],
)
def test_a_kv_cache_on_disk_is_of_a_model_and_what_computes_it(
    models: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], is_found: bool
) -> None:
    if change.get("isa") == isa.active():
        pytest.skip("this machine has no other instruction set")
    options: dict[str, Any] = {"device": "cpu", "context_tokens": 256, "num_threads": 1}
    options["kv_disk"] = f"{tmp_path / 'kv'}=64MiB"
    prompt = "A prompt that is long enough for more than a page. " * 3
    with hybridmoe.load(models[0], **options) as llm:
        wanted = llm.generate(prompt, max_tokens=3, temperature=0)
    assert wanted.timing.disk_tokens == 0
    path = models["other" in change]
    options |= {name: value for name, value in change.items() if name not in ("isa", "other")}
    with isa.forced(change.get("isa", isa.active())), hybridmoe.load(path, **options) as llm:
        result = llm.generate(prompt, max_tokens=3, temperature=0)
    tokens = wanted.timing.prompt_tokens - 1 if is_found else 0
    assert result.timing.disk_tokens == result.timing.cached_tokens == tokens
    if is_found:
        assert result.token_ids == wanted.token_ids

"""`LoadOptions`: one declaration for `load`, for `chat` and `serve`; checked before files are."""

from pathlib import Path
from typing import Any

import click
import pytest

import hybridmoe
from hybridmoe.cli.chat import chat_command
from hybridmoe.cli.generate import generate_command
from hybridmoe.cli.options import SERVER_NAMES, load_options_of
from hybridmoe.cli.serve import serve_command
from hybridmoe.errors import ConfigError
from hybridmoe.option import AUTO, FolderLimit, Speculation, options_of
from hybridmoe.placement.options import LoadOptions

NAMES = tuple(options_of(LoadOptions))
GOOD: dict[str, tuple[Any, Any]] = {  # as users write them, and as they are read
    "num_threads": (2, 2),
    "context_tokens": (64, 64),
    "kv_type": ("int8", "int8"),
    "kv_tokens": (128, 128),
    "max_running": (3, 3),
    "max_waiting": (0, 0),
    "speculate": ("mtp:2", Speculation("mtp", 2)),
    "kv_disk": ("kv=20GiB", FolderLimit(Path("kv"), 20 << 30)),
    "device": ("cpu", "cpu"),
    "vram": ("20GiB", 20 << 30),
    "place": (["blk=cpu"], ("blk=cpu",)),
    "expert_ram": ("1.5GB", 1_500_000_000),
    "expert_prefetch": (2, 2),
    "expert_profile": ("hot.json", Path("hot.json")),
    "trace": ("t", Path("t")),
    "expert_parallel": (True, True),
    "cluster_address": ("10.0.0.1:29501", "10.0.0.1:29501"),
    "cluster_key_file": ("key", Path("key")),
    "expert_share": ("3,1", (3.0, 1.0)),
    "yarn_beta_fast": (32, 32.0),
    "yarn_beta_slow": (1.0, 1.0),
}


OF_CLUSTERS = ("cluster_address", "cluster_key_file", "expert_share")


def parameters(command: click.Command) -> dict[str, click.Option]:
    return {str(p.name): p for p in command.params if isinstance(p, click.Option)}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_keyword_and_a_flag_that_help_shows(name: str) -> None:
    given, read = GOOD[name]
    needed = {"expert_parallel": True} if name in OF_CLUSTERS else {}
    assert getattr(LoadOptions.of(None, {name: given, **needed}), name) == read
    for command in (chat_command, generate_command, serve_command):
        found = parameters(command)
        if name in SERVER_NAMES and command is not serve_command:
            assert name not in found
            continue
        text = command.get_help(click.Context(command))
        assert all(flag in text for flag in found[name].opts)
        values = [] if given is True else [str(given[0] if name == "place" else given)]
        arguments = [found[name].opts[0], *values]
        with_prompt = ["-p", "x"] if command is generate_command else []
        more = [*with_prompt, *(["--expert-parallel"] if needed else [])]
        parsed = command.make_context("x", [*more, *arguments]).params
        assert getattr(load_options_of(parsed), name) == read


def test_a_flag_that_is_not_given_leaves_the_default() -> None:
    for command in (chat_command, serve_command):
        assert load_options_of(command.make_context("x", []).params) == LoadOptions()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_threads", 0, "num_threads=0: expected a whole number, 1 to 1024"),
        ("num_threads", True, "num_threads=True: expected a whole number, 1 to 1024"),
        ("context_tokens", 0, "context_tokens=0: expected a whole number from 1 on"),
        ("kv_type", "f64", "kv_type='f64': expected one of f16, bf16, int8, f32"),
        ("max_running", None, "max_running=None: expected a whole number, 1 to 4096"),
        ("device", "gpu", "device='gpu': expected one of auto, cpu, cuda"),
        ("vram", 0, "vram=0: expected a size of 1 byte or more"),
        ("vram", "0GiB", "vram='0GiB': expected a size of 1 byte or more"),
        ("vram", "lots", "vram='lots': expected a size such as 12GiB"),
        ("vram", "2GiB,", "vram='2GiB,': expected a size such as 12GiB"),
        ("device", "cuda:0,gpu1", "device='cuda:0,gpu1': expected one of auto, cpu, cuda, or GPUs"),
        ("device", "cuda:0,cuda:0", "device='cuda:0,cuda:0': expected each GPU once"),
        ("device", "cuda:-1", "device='cuda:-1': expected one of"),
        ("device", 3, "device=3: expected one of auto, cpu, cuda, or GPUs by number"),
        ("place", "blk=cpu", "place='blk=cpu': expected a list of strings"),
        ("place", ["blk"], "place='blk': expected REGEX=cpu or REGEX=cuda"),
        ("speculate", -1, "speculate=-1: expected 0 to 64 tokens, mtp, mtp:N, auto or off"),
        ("speculate", "mtp:0", "speculate='mtp:0': expected 0 to 64 tokens, mtp, mtp:N"),
        ("speculate", "65", "speculate='65': expected 0 to 64 tokens, mtp, mtp:N"),
        ("speculate", "٣", "speculate='٣': expected 0 to 64 tokens, mtp, mtp:N"),
        ("speculate", 2.0, "speculate=2.0: expected 0 to 64 tokens, mtp, mtp:N"),
        ("speculate", True, "speculate=True: expected 0 to 64 tokens, mtp, mtp:N"),
        ("trace", 3, "trace=3: expected the name of a file"),
        ("yarn_beta_fast", 0.0, r"yarn_beta_fast=0.0: expected a number above 0, at most 1e\+06"),
        ("yarn_beta_slow", float("nan"), "yarn_beta_slow=nan: expected a number above 0"),
        (
            "expert_share",
            "1e10,1",
            "expert_share='1e10,1': expected two or more numbers above 0, at",
        ),
        *(
            (name, GOOD[name][0], f"{name}: has no effect without expert_parallel")
            for name in OF_CLUSTERS
        ),
        ("num_thread", 1, "unknown option 'num_thread': did you mean num_threads?"),
        ("ctx", 1, r"unknown option 'ctx': did you mean context_tokens\?"),
        ("slots", 1, r"unknown option 'slots': did you mean max_running\?"),
        ("options", {"speculate": 3}, "options={'speculate': 3}: expected LoadOptions"),
        ("quux", 1, "unknown option 'quux': known: .*num_threads, "),
    ],
)
def test_what_cannot_be_is_one_line_before_the_file_is_opened(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        hybridmoe.load("no such file", **{name: value})
    assert "\n" not in str(caught.value)


def test_several_gpus_and_their_budgets() -> None:
    found = LoadOptions.of(None, {"device": "cuda:1,cuda:0", "vram": "20GiB,512MiB"})
    assert (found.device, found.vram) == ("cuda:1,cuda:0", (20 << 30, 512 << 20))
    assert LoadOptions(vram=(5, 6)).vram == (5, 6)
    assert LoadOptions(device="cuda:1").needs_gpu and not LoadOptions(device="cpu").needs_gpu


@pytest.mark.parametrize(
    ("given", "read", "text"),
    [
        (4, Speculation("lookup", 4), "4"),
        ("4", Speculation("lookup", 4), "4"),
        (0, Speculation("off", 0), "off"),
        ("off", Speculation("off", 0), "off"),
        ("auto", AUTO, "auto"),
        ("mtp", AUTO._replace(source="mtp"), "mtp"),
        ("mtp:64", Speculation("mtp", 64), "mtp:64"),
    ],
)
def test_sources_of_draft_tokens(given: Any, read: Speculation, text: str) -> None:
    found = LoadOptions(speculate=given).speculate
    assert (found, str(found)) == (read, text)
    assert LoadOptions(speculate=found) == LoadOptions(speculate=given)


def test_keywords_replace_those_of_given_options() -> None:
    base = LoadOptions(max_running=2, speculate=1)
    assert LoadOptions.of(base, {"max_running": 3}) == LoadOptions(max_running=3, speculate=1)
    assert LoadOptions.of(base, {}) == base

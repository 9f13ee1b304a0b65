"""Pages of the repository: links and source paths that exist, options that the commands have."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_docs import PAGE as CLI_PAGE
from click import Command, Context, Group
from field_docs import BLOCKS as FIELD_BLOCKS
from page_blocks import Block, with_block
from plan_docs import BLOCKS as PLAN_BLOCKS
from release_docs import BLOCKS as RELEASE_BLOCKS

from hybridmoe.cli.app import cli
from hybridmoe.cli.commands import COMMAND_NAMES

ROOT = Path(__file__).parent.parent
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "bench/README.md", "csrc/README.md")
    ),
    *sorted(ROOT.glob("docs/*.md")),
]
HISTORY = ROOT / "docs" / "log.md"  # says what was, under the names of then

LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
SOURCE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|cpp|h))`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Folders that a page may leave out in front of a path.
PREFIXES = ("", "hybridmoe", "csrc", "csrc/kernels", "csrc/formats", "hybridmoe/kernels/triton")
MADE_UP = {"simd_x.h", "isa_x.cpp", "simd_new.h", "isa_new.cpp"}  # a reader's own
FOREIGN = {
    "--help",
    "--no-deps",
    "--strict",
    "--enable-return-routed-experts",
    "--tasks",
    "--add-host",
    "--key",
    "--auto-approve",
    "--config",
    "--exclude",
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--master-port",
    "--max-restarts",
}  # pip's, mypy's, vLLM's, lm_eval's, docker's, llm's, Cline's, Continue's, torchrun's
OTHER_PROGRAMS = ROOT / "docs" / "coming-from.md"  # its tables begin with their options
MAX_LINE = 170
BLOCK_OF_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FIRST_CELL = re.compile(r"^\|[^|]*\|", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    names = {path.name for path in _tracked()}
    for path in SOURCE.findall(text) if page != HISTORY else ():
        folders = (page.parent, *(ROOT / prefix for prefix in PREFIXES))
        is_there = any((folder / path).exists() for folder in folders)
        if not is_there and path not in names and Path(path).name not in MADE_UP:
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page: Path) -> None:
    if page == HISTORY:
        pytest.skip("says what was")
    known = _options(cli) | FOREIGN
    for path in ROOT.glob("bench/*.py"):
        known |= set(OPTION.findall(path.read_text(encoding="utf-8")))
    text = page.read_text(encoding="utf-8")
    if page == OTHER_PROGRAMS:
        text = FIRST_CELL.sub("|", text)
    assert set(OPTION.findall(text)) - known == set()


def lines_of_text(page: Path) -> list[str]:
    """Lines of a page but for tables and blocks of code, which cannot be wrapped."""
    text = BLOCK_OF_CODE.sub("", page.read_text(encoding="utf-8"))
    return [line for line in text.splitlines() if not line.startswith("|")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != HISTORY], ids=lambda page: page.name
)
def test_lines_are_not_too_long_to_compare(page: Path) -> None:
    assert [line for line in lines_of_text(page) if len(line) > MAX_LINE] == []


def test_the_page_of_the_benchmarks_has_every_one() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    scripts = [path.name for path in ROOT.glob("bench/[a-z]*_*.py")]
    assert [name for name in scripts if name not in text] == []


def test_the_page_of_the_chat_has_every_command() -> None:
    text = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    assert [name for name in COMMAND_NAMES if f"`{name}" not in text] == []


def test_the_command_line_page_is_what_the_commands_say() -> None:
    """In a process of its own: click keeps a command's help option from its first call."""
    done = subprocess.run(
        [sys.executable, "-c", "import cli_docs; print(cli_docs.command_line_page(), end='')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert CLI_PAGE.read_text(encoding="utf-8") == done.stdout, (
        "run: python tests/support/cli_docs.py"
    )


@pytest.mark.parametrize(
    "block",
    (*RELEASE_BLOCKS, *PLAN_BLOCKS, *FIELD_BLOCKS),
    ids=lambda block: f"{block.page.name} {block.source}",
)
def test_parts_of_pages_are_as_their_program_writes_them(block: Block) -> None:
    text = block.page.read_text(encoding="utf-8")
    script = block.source.partition(":")[0]
    assert text == with_block(text, block), f"run: PYTHONPATH=.:tests/support python {script}"


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def _options(command: Command) -> set[str]:
    """Options of a command and of its subcommands."""
    found = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    if isinstance(command, Group):
        context = Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found |= _options(child)
    return found


def test_the_tests_of_the_first_hour_exist() -> None:
    text = (ROOT / "tests" / "first_hour.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(\w+))?`", text)
    source = ""
    for file, test in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8") if file else source
        assert not test or f"def {test}(" in source, test
    assert len(named) > 80

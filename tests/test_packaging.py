"""Files beside the modules, and lower bounds of dependencies, are those of the build."""

import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from hybridmoe.packages import REQUIREMENTS, install_command, missing_packages

ROOT = Path(__file__).parent.parent
BUILT = (".py", ".so", ".pyc")


def test_every_file_of_the_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["hybridmoe"]
    package = ROOT / "hybridmoe"
    copied = {path for pattern in patterns for path in package.glob(pattern)}
    files = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in BUILT and "__pycache__" not in path.parts
    }
    assert files - copied == set()
    for needed in ("demo/demo.gguf", "serve/static/index.html", "py.typed"):
        assert package / needed in copied


def test_what_messages_install_is_what_the_extras_have() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = settings["optional-dependencies"].values()
    wanted = {one.partition(";")[0] for extra in extras for one in extra}
    assert set(REQUIREMENTS.values()) <= wanted
    assert install_command("triton", "numba") == (
        f"{sys.executable} -m pip install 'triton>=3.4' 'numba>=0.61'"
    )
    assert missing_packages("torch") == ""
    assert not wanted & {*settings["dependencies"]}


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "hybridmoe").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_lowest_versions_are_those_that_were_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """`make lowest` turns every lower bound into a pin, but for what is large or compiled."""
    runpy.run_path(str(ROOT / ".ci" / "lowest.py"))
    lowest = dict(line.split("==") for line in capsys.readouterr().out.splitlines())
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = dict(line.split("==") for line in text.splitlines() if "==" in line)
    for name, version in lowest.items():
        assert name in tested and Version(version) <= Version(tested[name]), name
    assert {"gguf", "h11", "llguidance", "starlette"} <= lowest.keys()

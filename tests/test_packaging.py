"""What an installed package needs beside its modules is among what the build copies."""

import tomllib
from pathlib import Path

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
        if path.is_file() and path.suffix not in BUILT and path.parent.name != "__pycache__"
    }
    assert files - copied == set()
    for needed in ("demo/demo.gguf", "serve/static/index.html", "py.typed"):
        assert package / needed in copied


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "hybridmoe").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []

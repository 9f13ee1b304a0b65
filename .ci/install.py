"""Install hybridmoe into .venv in numbered steps; `make chat` and `make test` call it.

    install.py chat    what running models needs, and kernels for this machine's CPU alone
    install.py all     tests, linters and benches too, and kernels for every CPU

Checks compiler, venv module and disk space before the long part. Standard library only; an old
Python gets as far as the check of its version.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Bytecode is written at a module's first use, and so for what is used only.
NO_BYTECODE = [] if os.environ.get("PYTHONDONTWRITEBYTECODE") else ["--no-compile"]
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-q", *NO_BYTECODE]
BUILD_PACKAGES = ["setuptools", "wheel", "pybind11"]
ALL_EXTRAS = ("test", "dev", "train", "bench")
MIN_PYTHON = (3, 11)
MIN_COMPILER = {"gcc": 12, "clang": 14}  # C++20 with the AMX intrinsics
NEEDED_GB = {"chat": 2.0, "all": 5.0}
SIZES = {"chat": "0.3 GB to download, 1.1 GB on disk", "all": "1.1 GB to download, 3.4 GB on disk"}
# PyPI's torch for Linux has CUDA, some 3 GB more. PyTorch's own index has the build without.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = VENV / ".packages"  # digest of the requirements that were installed


def main(kind: str) -> None:
    check(kind)
    started = time.monotonic()
    os.chdir(ROOT)
    if not PYTHON.exists():
        run([sys.executable, "-m", "venv", str(VENV)])
    extras = ALL_EXTRAS if kind == "all" else ("cuda",) if has_gpu() else ()
    wanted = [*BUILD_PACKAGES, *requirements(extras)]
    text = "\n".join([*wanted, Path("constraints.txt").read_text(encoding="utf-8")])
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not STAMP.exists() or STAMP.read_text() != digest:
        more = "; CUDA, some GB more" if has_gpu() else ""
        with Step(1, f"Python packages: {SIZES[kind]}{more}"):
            options = [*index_options(), "-c", "constraints.txt"]
            run([*PIP, *options, *wanted], CMAKE_ARGS=llama_cpp_options())
        STAMP.write_text(digest)
    which, isa = ("this CPU", "native") if kind == "chat" else ("every CPU", "all")
    with Step(2, f"kernels for {which}: some minutes of one core, on {os.cpu_count()}"):
        env = {"HYBRIDMOE_BUILD_ISA": isa, "PYTHONWARNINGS": "ignore"}
        run([*PIP, "--no-build-isolation", "--no-deps", "-e", "."], **env)
    (VENV / (".built" if kind == "all" else ".chat")).touch()
    print(f"[3/3] ready after {time.monotonic() - started:.0f} s: .venv/bin/hybridmoe")
    print("      (source .venv/bin/activate, and it is hybridmoe)", flush=True)


def check(kind: str) -> None:
    """Exit with one line that says what is missing, before anything is downloaded."""
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        fail(f"Python {found} is too old; expected 3.11 or newer: make PYTHON=python3.11 ...")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail("Python lacks its venv module; on Debian and Ubuntu: apt install python3-venv")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        fail("Python's headers are missing; on Debian and Ubuntu: apt install python3-dev")
    compiler = os.environ.get("CXX", "c++").split()[-1]
    if shutil.which(compiler) is None:
        fail(f"no C++ compiler ({compiler}); on Debian and Ubuntu: apt install g++")
    about = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    family = "clang" if "clang" in about else "gcc"
    version = re.search(r"(\d+)\.\d+", about.partition("\n")[0])
    if version is not None and int(version[1]) < MIN_COMPILER[family]:
        fail(
            f"{family} {version[0]} is too old; expected {MIN_COMPILER[family]} or newer (CXX=...)"
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not PYTHON.exists() and free_gb < NEEDED_GB[kind]:
        fail(f"{free_gb:.1f} GB are free on this disk; expected {NEEDED_GB[kind]:.0f} GB")


def requirements(extras: tuple[str, ...]) -> list[str]:
    """List the run-time requirements of pyproject.toml, and those of the extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return [requirement for group in groups for requirement in group]


def has_gpu() -> bool:
    """Return True if this machine has NVIDIA's driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def llama_cpp_options() -> str:
    """CMake's options for llama-cpp-python: all kernels, but neither images nor its own tools."""
    include = shlex.quote(str(ROOT / ".ci" / "llama_cpp.cmake"))
    slim = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE={include}"
    return f"{slim} {os.environ.get('CMAKE_ARGS', '')}".strip()


def index_options() -> list[str]:
    """Add PyTorch's index of builds without CUDA where no NVIDIA card is found."""
    has_torch = any(VENV.glob("lib/python3*/site-packages/torch"))
    if has_gpu() or has_torch or not is_reachable(f"{CPU_TORCH_INDEX}/torch/"):
        return []
    return ["--extra-index-url", CPU_TORCH_INDEX]


def run(command: list[str], **env: str) -> None:
    """Run a command, with its seconds on a terminal. Exits if it fails, after its own message."""
    process = subprocess.Popen(command, env={**os.environ, **env})
    started = time.monotonic()
    while True:
        try:
            status = process.wait(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                print(f"\r      {time.monotonic() - started:.0f} s ", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if status != 0:
        fail(f"failed with status {status}: {' '.join(command[:7])} ...")


def is_reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def fail(message: str) -> None:
    sys.exit(f"hybridmoe: {message}")


class Step:
    """Step of the installation: its number and title first, its seconds at the end."""

    def __init__(self, number: int, title: str) -> None:
        self._started = time.monotonic()
        print(f"[{number}/3] {title}", flush=True)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            print(f"      done in {time.monotonic() - self._started:.0f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in (["chat"], ["all"]):
        sys.exit("usage: install.py chat | all")
    main(sys.argv[1])

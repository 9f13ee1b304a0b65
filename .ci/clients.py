"""Install the clients of tests/clients in build/clients, unless their pins are there already.

Python's in build/clients/python, npm's in build/clients/node; a file named `installed` in each
holds the pins. What cannot be had, for want of a network, of npm or of a package in the registry,
costs one line: its tests then skip.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

PINS = Path("tests/clients")
CLIENTS = Path("build/clients")


def install(name: str, pins: list[str], commands: list[list[str]]) -> None:
    """Run the commands that fill a new folder, and then write what it holds."""
    wanted = "".join((PINS / pin).read_text(encoding="utf-8") for pin in pins)
    folder = CLIENTS / name
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"installing the clients of tests/clients in {folder}", flush=True)
    if name == "python":
        venv.create(folder)
    for pin in pins:
        shutil.copy(PINS / pin, folder)
    try:
        for command in commands:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        print(f"no clients in {folder}, whose tests skip: {said[-1]}", flush=True)
    else:
        stamp.write_text(wanted, encoding="utf-8")


python = CLIENTS / "python"
pip = [
    sys.executable,
    "-m",
    "pip",
    "--disable-pip-version-check",
    "--python",
    f"{python}/bin/python",
]
pip += ["install", "-q", "--no-compile", "--retries", "1"]  # modules are compiled when imported
install("python", ["requirements.txt"], [[*pip, "-r", f"{python}/requirements.txt"]])
npm = [
    "npm",
    "ci",
    "--prefix",
    str(CLIENTS / "node"),
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
]
install("node", ["package.json", "package-lock.json"], [npm])

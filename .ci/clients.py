"""Install the clients of tests/clients in build/clients, unless their pins are there already.

The pins of tests/clients/NAME fill build/clients/NAME: python's from PyPI, node's and the agents'
from npm. A file `installed` holds the pins. What cannot be had, for want of a network, of npm or
of a package in the registry, costs one line: its tests then skip.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

PINS = Path("tests/clients")
CLIENTS = Path("build/clients")


def install(name: str, command: list[str]) -> None:
    """Fill a new folder by a command, and then write down what it holds."""
    pins = sorted((PINS / name).iterdir())
    wanted = "".join(pin.read_text(encoding="utf-8") for pin in pins)
    folder = CLIENTS / name
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"installing the clients of tests/clients/{name} in {folder}", flush=True)
    if name == "python":
        venv.create(folder)
    for pin in pins:
        shutil.copy(pin, folder)
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        first = next((line for line in said if line.startswith(("ERROR", "npm error"))), said[-1])
        print(f"no clients in {folder}, whose tests skip: {first}", flush=True)
    else:
        stamp.write_text(wanted, encoding="utf-8")


python = CLIENTS / "python"
pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
pip += ["--python", f"{python}/bin/python", "install", "-q", "--retries", "1"]
pip += ["--no-compile"]  # modules are compiled when they are first imported
install("python", [*pip, "-r", f"{python}/requirements.txt"])
for name in ("node", "agents"):
    npm = ["npm", "ci", "--prefix", str(CLIENTS / name), "--no-audit", "--no-fund"]
    install(name, [*npm, "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"])

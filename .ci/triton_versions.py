"""Compile every GPU kernel with each Triton that pyproject.toml allows: `make triton-versions`.

Needs no GPU. Each version is downloaded to build/triton-VERSION and used with the installed torch.
Every reduction's shuffles are compared with its layout: Triton 3.4 to 3.6 got some of them wrong.
Minutes of CPU for each version and architecture; `ARCHS=90 make triton-versions` takes one alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
ARCHS = ("80", "89", "90")
sys.path.insert(0, str(ROOT / "tests/support"))


def installed(version: str) -> Path:
    """Download a version, once; returns its folder."""
    folder = ROOT / f"build/triton-{version}"
    if not (folder / "triton").exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        package = ["--no-deps", "--target", str(folder), f"triton=={version}"]
        subprocess.run([*pip, *package], check=True)
    return folder


def faults(version: str, arch: str) -> list[str]:
    """Compile all kernels; list what is wrong."""
    from triton_layouts import reduction_fault

    folder = installed(version)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{ROOT}",
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(ROOT / "tests/support/triton_compile.py"), arch]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    found = [f"{fault}: {r['constants']}" for r in reports if (fault := reduction_fault(r))]
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror" in line] or [done.stderr]
        found.append(f"after {len(reports)} kernels: {said[-1].strip()}")
    print(f"Triton {version}, sm_{arch}: {len(reports)} kernels, {len(found)} faults", flush=True)
    return found


def main(versions: list[str]) -> int:
    archs = os.environ.get("ARCHS", " ".join(ARCHS)).split()
    found = [fault for v in versions or VERSIONS for arch in archs for fault in faults(v, arch)]
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

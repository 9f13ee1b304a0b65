"""Print the lowest versions of the runtime's requirements that pyproject.toml allows.

Two stay at the version of constraints.txt: torch is large, and llama-cpp-python compiles.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ("llama-cpp-python", "torch")

tested = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, lowest = requirement.split(">=")
    print(f"{name}=={tested[name] if name in KEPT else lowest}")

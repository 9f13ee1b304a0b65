"""Print the lowest versions of the runtime's requirements that pyproject.toml allows.

torch, which is large, stays at the version of constraints.txt.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ("torch",)

tested = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, lowest = requirement.split(">=")
    print(f"{name}=={tested[name] if name in KEPT else lowest}")

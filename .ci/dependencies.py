"""Print the requirements in pyproject.toml: the runtime's, then those of the extras named."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][e] for e in sys.argv[1:])]
print("\n".join(requirement for group in groups for requirement in group))

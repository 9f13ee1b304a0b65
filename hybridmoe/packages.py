"""Packages that some tasks need and a plain installation lacks, and the command that installs them.

hybridmoe is in no package index, so that the names of its extras work in a clone or with a wheel's
path alone. This command works after either.
"""

import shlex
import sys
from importlib.util import find_spec

__all__ = ["REQUIREMENTS", "install_command", "missing_packages"]

# As pyproject.toml has them, by the module that is imported.
REQUIREMENTS = {
    "llama_cpp": "llama-cpp-python>=0.3.16",
    "matplotlib": "matplotlib>=3.8",
    "numba": "numba>=0.61",
    "ray": "ray[serve]>=2.60",
    "triton": "triton>=3.4",
}


def install_command(*modules: str) -> str:
    """Command that installs the packages of these modules beside this program."""
    return shlex.join(
        [sys.executable, "-m", "pip", "install", *(REQUIREMENTS[name] for name in modules)]
    )


def missing_packages(*modules: str) -> str:
    """Name those of the modules that are not installed, and the remedy; "" if all are."""
    missing = [name for name in modules if find_spec(name) is None]
    if not missing:
        return ""
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} missing: {install_command(*missing)}"

"""The flags and sources of setup.py, for tests that compile."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hybridmoe_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = load_setup()
# Compiler's flags for kernels that are tested, not timed.
NOT_INLINED = ["-O0", "-w", "-Wno-psabi", "-include", str(SETUP.CSRC / "tests" / "not_inlined.h")]

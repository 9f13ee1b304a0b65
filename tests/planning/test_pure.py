"""Planning runs where nothing is compiled: without the extension, and without torch and numba."""

from pathlib import Path

from k2_header import write_k2
from subprocesses import run_python

PROGRAM = """
import pkgutil, sys
from importlib import import_module
from pathlib import Path

for name in ("hybridmoe._C", "torch", "numba"):
    sys.modules[name] = None  # an import of it fails

import hybridmoe.planning

names = [module.name for module in pkgutil.iter_modules(hybridmoe.planning.__path__)]
for name in names:
    import_module(f"hybridmoe.planning.{name}")
print(len(names))

from hybridmoe.config import EngineConfig
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.problem import Budgets

outline = read_outline(Path(sys.argv[1]))
engine = EngineConfig(context_tokens=4096)
budgets = Budgets(ram_bytes=128 << 30, vram_bytes=24 << 30)
print(plan_memory(outline.config, outline.tensors, engine, budgets).num_disk_experts)
"""


def test_a_plan_needs_no_extension_and_no_torch(tmp_path: Path) -> None:
    path = write_k2(tmp_path / "k2.gguf")
    done = run_python(PROGRAM.replace("sys.argv[1]", repr(str(path))))
    assert done.returncode == 0, done.stderr
    num_modules, num_disk_experts = map(int, done.stdout.split())
    assert num_modules > 10 and num_disk_experts > 0

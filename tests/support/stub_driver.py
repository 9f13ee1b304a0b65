"""Compile a model's kernels without a GPU, then launch them: prints what was compiled when.

A process of its own (`python tests/support/stub_driver.py FILE`), since Triton either interprets or
compiles from its first import on. Triton's driver is replaced by one of a GPU (sm_90) on which
launches do nothing; all before that is Triton's own.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.kernels.triton.compiling import compile_launches
from hybridmoe.kernels.triton.launches import ShapesOnly
from hybridmoe.kernels.triton.runtime import planned_multiprocessors
from hybridmoe.placement.gpu_launches import GpuPart, model_launches, run_steps

NUM_MULTIPROCESSORS = 132

# Unlike those that the list of launches was made with.
STEPS = [
    [Span(1, 130, range(3))],
    [Span(1, 4999, range(79))],
    [Span(1, 5 * i, [i]) for i in range(3)],
    [Span(1, 700 + i, range(12)) for i in range(16)],
    [Span(5, 200, range(4))],
    [Span(1, 900, range(15)), Span(40, 300, range(6)), Span(3, 0, [7])],
    [Span(1, 900, range(15)), Span(200, 300, range(8))],
    [Span(1000, 0, range(16))],
]


class StubDriver:
    """Driver of a GPU on which launches do nothing; counts them, and loads of binaries."""

    def __init__(self) -> None:
        self.launched = self.loaded = 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
            load_binary=self._load,
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        return self._launch

    def _launch(self, *args: Any) -> None:
        self.launched += 1

    def _load(self, *args: Any) -> tuple[int, int, int, int, int]:
        self.loaded += 1
        return 1, 1, 32, 0, 1024


def main(path: Path) -> None:
    stub = StubDriver()
    driver.set_active(stub)  # type: ignore[arg-type]
    missing: list[str] = []  # launches that no binary was in memory for
    cached: list[bool] = []  # of these, whether the disk had it

    def hook(*, fn: Any, **_: Any) -> None:
        missing.append(fn.name)

    def listener(*, cache_hit: bool, **_: Any) -> None:
        cached.append(cache_hit)

    triton.knobs.runtime.jit_cache_hook = hook
    triton.knobs.compilation.listener = listener

    def report(phase: str) -> None:
        counts = {"missing": missing, "compiled": cached.count(False), "cached": cached.count(True)}
        print(json.dumps({"phase": phase, **counts, "launched": stub.launched}))
        missing.clear()
        cached.clear()

    done: list[tuple[int, int]] = []
    with GGUFFile.open(path) as file:
        config, part = read_config(file.metadata, file.tensors), GpuPart(kv_type="f16")
        launches = model_launches(file, config, part, NUM_MULTIPROCESSORS)
        heavy = {"sympy", "torch._dynamo"} & sys.modules.keys()
        assert not heavy, heavy  # torch's own code for some operations on the meta device
        failed = compile_launches(launches, nullcontext, lambda *now: done.append(now))
        assert not failed, failed
        assert done == [(i, len(launches)) for i in range(len(launches) + 1)], done
        report("compiled")
        planned_multiprocessors.set(NUM_MULTIPROCESSORS)
        with ShapesOnly():
            run_steps(file, config, part, STEPS)
        report("launched")
        for launch in launches:
            launch.kernel.device_caches.clear()  # as in a new process
        compile_launches(launches, nullcontext)
        report("compiled again")
        with ShapesOnly():
            run_steps(file, config, part, STEPS)
        report("launched again")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Compile the GPU kernels that models launch, without a GPU: prints registers, spills, shuffles.

A process of its own (`python tests/support/triton_compile.py 89`), since Triton either interprets
or compiles from its first import on. With `few`, one launch of each kernel.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from inspect import signature as signature_of
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

from model_launches import launches_of_all
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton_layouts import lane_distances, shuffles

from hybridmoe.kernels.triton.launches import Launch


class Target:
    """Driver of a GPU that is compiled for, and not there."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)


def compiled(launch: Launch, arch: int) -> dict[str, Any]:
    """Compile a launch for the driver's target; returns ptxas's report."""
    binary = launch.kernel.run(*launch.args, grid=None, warmup=True, **launch.options)
    takes_arch = bool(signature_of(get_ptxas).parameters)  # from Triton 3.5 or 3.6 on
    ptxas = get_ptxas(*([arch] if takes_arch else [])).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(binary.asm["ptx"])
        target = re.search(r"^\.target (\w+)", binary.asm["ptx"], re.MULTILINE)
        assert target
        command = [ptxas, "-v", f"--gpu-name={target[1]}", path, "-o", path.with_suffix(".o")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def figure(pattern: str) -> int:
        found = re.search(pattern, report)
        assert found, report
        return int(found[1])

    assembly, ttgir = binary.asm["ptx"], binary.asm["ttgir"]
    return {
        "kernel": launch.name,
        "constants": {k: str(v) for k, v in launch.constants.items()},
        "registers": figure(r"Used (\d+) registers"),
        "spilled_bytes": figure(r"(\d+) bytes spill stores"),
        "shared_bytes": binary.metadata.shared,
        "cubin_bytes": len(binary.asm["cubin"]),
        "has_16_byte_loads": "ld.global.v4.b32" in assembly,
        "loads_of_x": assembly.count("ld.global.v4.b32"),
        "barriers": assembly.count("bar.sync"),
        "reduces_a_reshape": '"tt.reduce"' in ttgir and "tt.reshape" in binary.asm["ttir"],
        "warps": binary.metadata.num_warps,
        "wanted": sorted(lane_distances(ttgir)),
        "shuffled": sorted(shuffles(assembly)),
    }


def few(launches: Iterable[Launch]) -> list[Launch]:
    """One launch of each kernel."""
    first: dict[str, Launch] = {}
    for launch in launches:
        first.setdefault(launch.name, launch)
    return list(first.values())


def main(arch: int, *options: str) -> None:
    driver.set_active(Target(arch))  # type: ignore[arg-type]
    launches: Iterable[Launch] = launches_of_all().values()
    for launch in few(launches) if "few" in options else launches:
        print(json.dumps(compiled(launch, arch)))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

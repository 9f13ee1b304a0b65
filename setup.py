"""Builds the extension module hybridmoe._C; everything else is in pyproject.toml.

Each instruction set is a static library with flags of its own, linked into the one extension, which
picks a kernel table at run time. HYBRIDMOE_DEV=1 turns warnings into errors; HYBRIDMOE_SANITIZE
names sanitizers to build with (`make asan`).
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_clib import build_clib

CSRC = Path("csrc")
SANITIZE = [f"-fsanitize={names}" for names in [os.environ.get("HYBRIDMOE_SANITIZE")] if names]
# A null pointer traps by itself; looking for these two doubles the time of compiling.
SANITIZE_CFLAGS = ["-fno-sanitize=null,pointer-overflow", "-fno-sanitize-recover=all", "-O1", "-g1"]
CFLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # decoding is bit for bit; fused multiply-adds are written out
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    f"-I{CSRC}",
    *(["-Werror"] if os.environ.get("HYBRIDMOE_DEV") == "1" else []),
    *([*SANITIZE, *SANITIZE_CFLAGS] if SANITIZE else []),
]

ISA_CFLAGS = [*CFLAGS, "-fno-exceptions", "-fno-rtti"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    *("-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"),  # false alarms in GCC 12's header
]
AMX = [*AVX512, "-mavx512vbmi", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
ISA_FLAGS = {"scalar": [], "avx2": AVX2, "avx512": AVX512, "amx": AMX}
if platform.machine() not in ("x86_64", "AMD64"):
    ISA_FLAGS = {"scalar": []}


def isa_source(name: str) -> str:
    """The file that becomes the object of instruction set `name`."""
    return str(CSRC / "kernels" / f"isa_{name}.cpp")


FOLDERS = (".", "base", "formats", "kernels", "ops")
HEADERS = sorted(str(path) for pattern in ("*.h", "*.inc") for path in CSRC.rglob(pattern))
ISA_SOURCES = {str(path) for path in CSRC.glob("kernels/isa_*.cpp")}
SOURCES = sorted({str(p) for folder in FOLDERS for p in CSRC.glob(f"{folder}/*.cpp")} - ISA_SOURCES)


class BuildLibraries(build_clib):
    """All instruction sets at once: they take most of the time, and use one core each."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, Any]]]) -> None:
        build = super().build_libraries
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda library: build([library]), libraries))


if __name__ == "__main__":
    setup(
        cmdclass={"build_clib": BuildLibraries},
        libraries=[
            (
                f"hybridmoe_{name}",
                {
                    "sources": [isa_source(name)],
                    "obj_deps": {"": HEADERS},
                    "cflags": ISA_CFLAGS + flags,
                },
            )
            for name, flags in ISA_FLAGS.items()
        ],
        ext_modules=[
            Pybind11Extension(
                "hybridmoe._C",
                SOURCES,
                depends=HEADERS,
                define_macros=[(f"HM_HAVE_{name.upper()}", "1") for name in ISA_FLAGS],
                extra_compile_args=CFLAGS,
                extra_link_args=SANITIZE,
                libraries=["dl"] if sys.platform == "linux" else [],  # its own before glibc 2.34
            )
        ],
    )

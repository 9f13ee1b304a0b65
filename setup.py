"""Builds the extension module hybridmoe._C; everything else is in pyproject.toml.

Each instruction set is an object with flags of its own, linked into the one extension, which picks
a kernel table at run time. HYBRIDMOE_BUILD_ISA=native builds this machine's best one and the scalar
one alone; HYBRIDMOE_DEV=1 turns warnings into errors; HYBRIDMOE_SANITIZE names sanitizers to build
with (`make asan`).
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

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

NO_RUNTIME = ["-fno-exceptions", "-fno-rtti"]
ISA_CFLAGS = [*CFLAGS, *NO_RUNTIME]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX_VNNI = [*AVX2, "-mavxvnni"]
AVX512 = [
    *AVX2,
    *("-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    *("-Wno-unknown-warning-option", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),  # of GCC 12
]
AMX = [*AVX512, "-mavx512vbmi", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
SCALAR = [] if SANITIZE else ["-O2"]  # a fallback: half of the time of -O3 to compile
ISA_FLAGS = {  # best first, and slowest to compile
    "amx": AMX,
    "avx512": AVX512,
    "avx_vnni": AVX_VNNI,
    "avx2": AVX2,
    "scalar": SCALAR,
}
# Products that replace some of an instruction set's, where a CPU has more.
EXTRAS = {"avx512_vbmi": ("avx512", [*AVX512, "-mavx512vbmi"])}
if platform.machine() not in ("x86_64", "AMD64"):
    ISA_FLAGS, EXTRAS = {"scalar": SCALAR}, {}
OBJECT_FLAGS = {**ISA_FLAGS, **{name: flags for name, (_, flags) in EXTRAS.items()}}


def isa_source(name: str) -> str:
    """The file that becomes the object of instruction set `name`."""
    return str(CSRC / "kernels" / f"isa_{name}.cpp")


def isa_for(cpu_flags: list[str]) -> list[str]:
    """List what to build for a CPU with these flags (/proc/cpuinfo): best set, extras, scalar."""
    runs = [name for name, flags in OBJECT_FLAGS.items() if _needs(flags) <= {*cpu_flags}]
    best = next(name for name in ISA_FLAGS if name in runs)
    extras = [name for name, (base, _) in EXTRAS.items() if base == best and name in runs]
    return list(dict.fromkeys([best, *extras, "scalar"]))


def _needs(flags: list[str]) -> set[str]:
    return {_cpu_flag(flag) for flag in flags if flag.startswith("-m")}


def _cpu_flag(option: str) -> str:
    """Convert a compiler's option to Linux's name of the feature: -mavx512vnni to avx512_vnni."""
    name = option.removeprefix("-m").replace("-", "_")
    names = {"avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}
    return names.get(name, name)


def built_isa() -> list[str]:
    """List the instruction sets, with extras, to build, by HYBRIDMOE_BUILD_ISA."""
    wanted = os.environ.get("HYBRIDMOE_BUILD_ISA") or "all"
    if wanted not in ("all", "native"):
        sys.exit(f"HYBRIDMOE_BUILD_ISA={wanted}: expected all or native")
    if wanted == "all":
        return list(OBJECT_FLAGS)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return isa_for(next((line.split() for line in lines if line.startswith("flags")), []))


FOLDERS = (".", "base", "formats", "kernels", "ops")
HEADERS = sorted(str(path) for pattern in ("*.h", "*.inc") for path in CSRC.rglob(pattern))
ISA_SOURCES = {isa_source(name): name for name in OBJECT_FLAGS}
SOURCES = sorted({str(p) for folder in FOLDERS for p in CSRC.glob(f"{folder}/*.cpp")})


class BuildExtension(build_ext):
    """Compiles all files at once, each with the flags of its instruction set."""

    def build_extensions(self) -> None:
        compile_files = self.compiler.compile

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            def compile_one(source: str) -> list[str]:
                isa = ISA_SOURCES.get(source)
                flags = [] if isa is None else [*NO_RUNTIME, *OBJECT_FLAGS[isa]]
                postargs = [*(options.get("extra_postargs") or ()), *flags]
                return compile_files([source], **{**options, "extra_postargs": postargs})

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [one for objects in pool.map(compile_one, sources) for one in objects]

        self.compiler.compile = compile_at_once
        super().build_extensions()


if __name__ == "__main__":
    built = built_isa()
    slowest = [str(CSRC / "bindings.cpp"), *map(isa_source, built)]
    setup(
        cmdclass={"build_ext": BuildExtension},
        ext_modules=[
            Pybind11Extension(
                "hybridmoe._C",
                [*slowest, *(s for s in SOURCES if s not in {*slowest, *ISA_SOURCES})],
                depends=HEADERS,
                define_macros=[(f"HM_HAVE_{name.upper()}", "1") for name in built],
                extra_compile_args=CFLAGS,
                extra_link_args=SANITIZE,
                libraries=["dl"] if sys.platform == "linux" else [],  # its own before glibc 2.34
            )
        ],
    )

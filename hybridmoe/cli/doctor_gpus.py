"""GPU kernels for `hybridmoe doctor`: compiled and compared with the CPU's, once a kind of GPU."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.demo import demo_path
from hybridmoe.errors import HybridMoeError
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.llm.load import load
from hybridmoe.llm.progress import Progress
from hybridmoe.placement.kernel_checks import KernelCheck

__all__ = ["KernelReport", "gpu_rows", "report_kernels"]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Kernels of GPUs of one kind, as one of them ran them on the embedded model."""

    gpus: tuple[CudaGpu, ...]  # the first was tried
    number: int  # of kernels
    seconds: float  # of compiling, or of finding them in the cache
    folder: str  # of Triton's cache
    checks: Sequence[KernelCheck] = ()
    faults: Sequence[str] = ()  # lines

    @property
    def rows(self) -> Iterator[tuple[str, str]]:
        """Lines for people: kernels, checks, and each kernel that is wrong."""
        devices = ", ".join(f"cuda:{gpu.number}" for gpu in self.gpus)
        name = f"{self.gpus[0].name} ({devices})"
        compiled = f"{self.number} compiled or cached in {self.seconds:.1f} s: {self.folder}"
        yield "GPU kernels", f"{name}: {compiled}"
        if not self.checks:
            return
        right = [check.error for check in self.checks if check.is_right]
        most = f", at most {max(right):.2g} times the error that rounding explains" if right else ""
        yield "GPU self-check", f"{name}: {len(right)} of {len(self.checks)} right{most}"
        yield from (("", f"{check}: WRONG") for check in self.checks if not check.is_right)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "gpus": [gpu._asdict() for gpu in self.gpus],
            "checks": [_check_json(check) for check in self.checks],
        }


def _check_json(check: KernelCheck) -> dict[str, Any]:
    error = check.error if isfinite(check.error) else None  # JSON has no NaN
    return asdict(check) | {"error": error, "is_right": check.is_right}


def gpu_rows(found: Sequence[CudaGpu | NoGpu]) -> list[tuple[str, str]]:
    """List every GPU of a machine that has several."""
    if len(found) < 2:
        return []
    return [
        (f"GPU cuda:{number}", gpu.facts if isinstance(gpu, CudaGpu) else f"unused: {gpu.reason}")
        for number, gpu in enumerate(found)
    ]


def report_kernels(
    found: Iterable[CudaGpu | NoGpu], models: Sequence[Path]
) -> Iterator[KernelReport]:
    """Compile for the embedded model and for `models` on each kind of GPU, then check.

    Errors: those of opening the models; ConfigError if no kernel compiles.
    """
    kinds: dict[tuple[object, ...], list[CudaGpu]] = {}
    for gpu in found:
        if isinstance(gpu, CudaGpu):
            kind = (gpu.name, gpu.capability, gpu.num_multiprocessors)
            kinds.setdefault(kind, []).append(gpu)
    for gpus in kinds.values():
        yield _report(tuple(gpus), models)


def _report(gpus: tuple[CudaGpu, ...], models: Sequence[Path]) -> KernelReport:
    from hybridmoe.kernels.triton.compiling import choose_cache_folder  # needs Triton, an extra
    from hybridmoe.placement.gpu_compile import compile_for_file

    folder, started, number = choose_cache_folder(), time.perf_counter(), 0
    with ProgressBar() as bar:

        def show(done: int, total: int) -> None:
            bar(Progress("compile", done, total, "kernels"))

        for path in (demo_path(), *models):
            number += compile_for_file(path, gpus[0], show)
    seconds = time.perf_counter() - started
    return KernelReport(gpus, number, seconds, str(folder), *_check(gpus[0]))


def _check(gpu: CudaGpu) -> tuple[Sequence[KernelCheck], Sequence[str]]:
    """Load the embedded model on a GPU. Returns the checks, and lines on what is wrong."""
    where = f"cuda:{gpu.number} ({gpu.name})"
    try:
        with load(device=f"cuda:{gpu.number}", context_tokens=512) as llm:
            faults = [f"{where}: {note}" for note in llm.notes if "self-check" in note]
            return llm.kernel_checks, faults
    except HybridMoeError as error:
        return (), [f"the embedded model does not load on {where}: {error}"]

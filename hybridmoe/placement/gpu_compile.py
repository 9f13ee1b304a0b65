"""Compilation of a model's kernels at load, so that no step waits for it."""

from collections.abc import Callable

import torch

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.triton.compiling import compile_launches
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED, num_multiprocessors
from hybridmoe.placement.gpu_launches import GpuPart, model_launches
from hybridmoe.planning.plan import Plan

__all__ = ["compile_kernels"]


def compile_kernels(
    file: GGUFFile,
    plan: Plan,
    gpu: CudaGpu,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compile every kernel that steps of this model launch, or load it from Triton's cache.

    progress: called with the kernels compiled so far, and their number. A kernel that does not
    compile is left to its launch.
    Errors: ConfigError if none does.
    """
    if IS_INTERPRETED:
        return
    device = torch.device("cuda", gpu.number)
    config = plan.problem.sizes.config
    launches = model_launches(file, config, GpuPart.of(plan), num_multiprocessors(device))
    failed = compile_launches(launches, lambda: torch.cuda.device(device), progress)
    if failed and len(failed) == len(launches):
        line = " ".join(str(failed[0][1]).split())[:200]
        raise ConfigError(
            f"GPU kernels cannot be compiled: {line} (Triton needs a C compiler, gcc or clang;"
            " --device cpu needs none)"
        )

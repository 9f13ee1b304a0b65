"""Compilation of a model's GPU kernels before its first step, so that no step waits for it."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from hybridmoe.config import GPU_KV_TYPES, ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.triton.compiling import compile_launches
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED, num_multiprocessors
from hybridmoe.model.decoder import Decoder
from hybridmoe.placement.gpu_launches import GpuPart, model_launches
from hybridmoe.planning.plan import Plan

__all__ = ["capture_first_graph", "compile_for_file", "compile_kernels"]

Progress = Callable[[int, int], None]  # kernels compiled so far, and their number


def compile_kernels(
    file: GGUFFile, plan: Plan, gpu: CudaGpu, progress: Progress = lambda done, total: None
) -> None:
    """Compile every kernel that steps of this plan launch, or load it from Triton's cache.

    What fails here fails again where it is launched, which the self-check reports.
    """
    if not IS_INTERPRETED:
        with suppress(Exception):
            _compile(file, plan.problem.sizes.config, GpuPart.of(plan), gpu, progress)


def capture_first_graph(decoder: Decoder) -> None:
    """Capture a decode step of one token. Errors: DeviceError."""
    if not IS_INTERPRETED:  # where it would only take time
        decoder.capture()


def compile_for_file(
    path: Path, gpu: CudaGpu, progress: Progress = lambda done, total: None
) -> int:
    """Compile the kernels of a model with the default options. Returns their number.

    Errors: GGUFError, UnsupportedModelError; ConfigError if no kernel compiles.
    """
    with GGUFFile.open(path) as file:
        config = read_config(file.metadata, file.tensors)
        number, failed = _compile(file, config, GpuPart(kv_type=GPU_KV_TYPES[0]), gpu, progress)
    if failed and len(failed) == number:
        line = " ".join(str(failed[0]).split())[:200]
        raise ConfigError(
            f"GPU kernels cannot be compiled: {line} (Triton needs a C compiler, gcc or clang)"
        )
    return number


def _compile(
    file: GGUFFile, config: ModelConfig, part: GpuPart, gpu: CudaGpu, progress: Progress
) -> tuple[int, list[Exception]]:
    """Compile a model's launches. Returns their number, and the errors of those that failed."""
    device = torch.device("cuda", gpu.number)
    launches = model_launches(file, config, part, num_multiprocessors(device))
    failed = compile_launches(launches, lambda: torch.cuda.device(device), progress)
    return len(launches), [error for _, error in failed]

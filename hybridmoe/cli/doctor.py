"""`hybridmoe doctor`: facts about this machine, its measured limits, and advice."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import click

from hybridmoe import _C
from hybridmoe.cli.options import debug_option
from hybridmoe.cli.render import ProgressBar
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.experts.disk.read_backends import choose_read_backend
from hybridmoe.hardware.gpu import CudaGpu, NoGpu, find_gpu
from hybridmoe.hardware.machine import Limits, Machine, Rate, advice, inspect_machine, measure
from hybridmoe.llm.llm import Progress
from hybridmoe.llm.load import load
from hybridmoe.placement.kernel_checks import KernelCheck
from hybridmoe.units import format_bytes

__all__ = ["doctor_command"]


@click.command("doctor")
@click.option("--quick", is_flag=True, help="Measure for one second instead of four")
@click.option(
    "--compile",
    "models",
    multiple=True,
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="Compile the GPU kernels of MODEL.gguf, too; repeatable",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@debug_option
def doctor_command(quick: bool, models: tuple[Path, ...], as_json: bool) -> None:
    """Measure memory bandwidth and arithmetic throughput of this machine, and give advice.

    Other programs that run at the same time lower the figures. On a GPU, compile the kernels of the
    embedded model, so that its first load need not, and compare them with the CPU's.
    """
    gpu = find_gpu()
    if models and isinstance(gpu, NoGpu):
        raise ConfigError(f"--compile: {gpu.reason}")
    machine = inspect_machine()
    limits = measure(quick=quick)
    costs = _C.matmul_costs()
    reads = choose_read_backend().describe()
    said = advice(machine, limits)
    kernels = None if isinstance(gpu, NoGpu) else _compile_kernels(gpu, models)
    checks = _NO_CHECKS if isinstance(gpu, NoGpu) else _check_kernels()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "machine": asdict(machine),
                    "limits": asdict(limits),
                    "matmul_costs": costs,
                    "expert_reads": reads,
                    "gpu_kernels": None if kernels is None else kernels._asdict(),
                    "gpu_self_check": [asdict(check) for check in checks.checks],
                    "gpu_faults": checks.faults,
                    "advice": said,
                }
            )
        )
        return
    rows = [
        *_facts(machine),
        ("expert reads", reads),
        *_limits(limits),
        ("prompt kernels", _crossover(costs)),
    ]
    if kernels is not None:
        text = f"{kernels.number} compiled or cached in {kernels.seconds:.1f} s: {kernels.folder}"
        rows.append(("GPU kernels", text))
        rows += [
            ("GPU self-check", f"{check}{'' if check.is_right else ': WRONG'}")
            for check in checks.checks
        ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
    click.echo()
    for sentence in (*said, *checks.faults):
        click.echo(f"- {sentence}")


class _GpuKernels(NamedTuple):
    """Kernels that are compiled now."""

    number: int
    seconds: float
    folder: str  # of Triton's cache


def _compile_kernels(gpu: CudaGpu, models: tuple[Path, ...]) -> _GpuKernels:
    """Compile for the embedded model and others. Errors: those of opening them; ConfigError."""
    from hybridmoe.kernels.triton.compiling import choose_cache_folder
    from hybridmoe.placement.gpu_compile import compile_for_file

    folder, started, number = choose_cache_folder(), time.perf_counter(), 0
    with ProgressBar() as bar:

        def show(done: int, total: int) -> None:
            bar(Progress("compile", done, total, "kernels"))

        for path in (demo_path(), *models):
            number += compile_for_file(path, gpu, show)
    return _GpuKernels(number, time.perf_counter() - started, str(folder))


class _Checks(NamedTuple):
    """Self-check of the GPU's kernels on the embedded model."""

    checks: Sequence[KernelCheck]
    faults: Sequence[str]  # lines


_NO_CHECKS = _Checks((), ())


def _check_kernels() -> _Checks:
    """Load the embedded model on the GPU."""
    try:
        with load(device="cuda", context_tokens=512) as llm:
            return _Checks(llm.kernel_checks, [note for note in llm.notes if "self-check" in note])
    except HybridMoeError as error:
        return _Checks((), [f"the embedded model does not load on the GPU: {error}"])


def _facts(m: Machine) -> list[tuple[str, str]]:
    memory = "unknown" if m.available_bytes is None else format_bytes(m.available_bytes)
    quota = "" if m.cpu_quota is None else f", quota of {m.cpu_quota:g} CPUs"
    return [
        ("CPU", m.cpu),
        (
            "cores",
            f"{m.cores} ({m.hardware_threads} hardware threads, NUMA nodes: {m.nodes}{quota})",
        ),
        ("kernel threads", str(m.kernel_threads)),
        ("instruction sets", f"{', '.join(m.isa_supported)}; in use: {m.isa_active}"),
        ("free memory", memory),
        ("transparent huge pages", m.huge_pages),
        ("GPU", m.gpu or f"none: {m.no_gpu}"),
    ]


def _limits(limits: Limits) -> list[tuple[str, str]]:
    def text(rate: Rate, unit: float, name: str) -> str:
        return f"{rate.one / unit:.2f} {name} one core, {rate.all / unit:.2f} all threads"

    rows = [
        ("memory read", text(limits.read, 1e9, "GB/s")),
        ("int8", text(limits.int8, 1e12, "TOPS")),
        ("float32", text(limits.float32, 1e12, "TFLOPS")),
    ]
    if limits.amx_int8 is not None and limits.amx_bf16 is not None:
        rows += [
            ("AMX int8", text(limits.amx_int8, 1e12, "TOPS")),
            ("AMX bf16", text(limits.amx_bf16, 1e12, "TFLOPS")),
        ]
    return rows


def _crossover(costs: dict[str, float]) -> str:
    if "matrix_unpack" in costs:
        return (
            f"AMX tiles from {costs['matrix_tiles_from_tokens']:.0f} tokens of an expert on "
            f"(unpack {costs['unpack']:g}, dot {costs['dot']:g}; for tiles, unpack "
            f"{costs['matrix_unpack']:g}, 16 tokens {costs['matrix_dot']:g} cycles)"
        )
    return (
        f"panels from {costs['panels_from_tokens']:.0f} tokens of an expert on "
        f"(unpack {costs['unpack']:g}, dot {costs['dot']:g}, spread {costs['spread']:g}, "
        f"panel dot {costs['panel_dot']:g} cycles)"
    )

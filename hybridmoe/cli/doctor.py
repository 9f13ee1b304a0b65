"""Run of `hybridmoe doctor`: facts about this machine, its measured limits, and advice."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from hybridmoe import _C
from hybridmoe.cli.doctor_gpus import gpu_rows, report_kernels
from hybridmoe.errors import ConfigError
from hybridmoe.experts.disk.read_backend import describe_backend, find_reason_for_threads
from hybridmoe.hardware.gpu import NoGpu, find_gpu, find_gpus
from hybridmoe.hardware.machine import Limits, Machine, Rate, advice, inspect_machine, measure
from hybridmoe.units import format_bytes

__all__ = ["run_doctor"]

_BUSY_SHARE = 0.3
_BUSY = (
    "other programs were running (load average {load:.1f} on {cores} cores): the rates are too low;"
    " measure again when they have ended"
)


def run_doctor(*, quick: bool, models: tuple[Path, ...], as_json: bool) -> None:
    """Measure and print. models: whose GPU kernels are compiled too. Errors: ConfigError."""
    gpu = find_gpu()
    if models and isinstance(gpu, NoGpu):
        raise ConfigError(f"--compile: {gpu.reason}")
    machine = inspect_machine()
    load = os.getloadavg()[0]
    if sys.stderr.isatty():
        click.echo(f"measuring memory and arithmetic for {1 if quick else 4} seconds ...", err=True)
    limits = measure(quick=quick)
    costs = _C.matmul_costs()
    reads = describe_backend(find_reason_for_threads())
    said = advice(machine, limits)
    if load > machine.cores * _BUSY_SHARE:
        said = [_BUSY.format(load=load, cores=machine.cores), *said]
    found = find_gpus()
    gpus = () if isinstance(found, NoGpu) else found
    kernels = [] if isinstance(gpu, NoGpu) else list(report_kernels(gpus, models))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "machine": asdict(machine),
                    "limits": asdict(limits),
                    "matmul_costs": costs,
                    "expert_reads": reads,
                    "gpus": [gpu._asdict() for gpu in gpus],
                    "gpu_kernels": [report.as_json() for report in kernels],
                    "advice": said,
                }
            )
        )
        return
    rows = [
        *_facts(machine),
        *gpu_rows(gpus),
        ("expert reads", reads),
        *_limits(limits),
        ("prompt kernels", _crossover(costs)),
    ]
    rows += [row for report in kernels for row in report.rows]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
    click.echo()
    for sentence in (*said, *(fault for report in kernels for fault in report.faults)):
        click.echo(f"- {sentence}")


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

"""Run of `hybridmoe doctor`: facts about this machine, its measured limits, and what to change."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

import click

from hybridmoe import _C
from hybridmoe.cli.doctor_bounds import bounds, measured_units
from hybridmoe.cli.doctor_checks import Check, check_machine
from hybridmoe.cli.doctor_gpus import gpu_rows, report_kernels
from hybridmoe.errors import ConfigError
from hybridmoe.experts.disk.read_backend import describe_backend, find_reason_for_threads
from hybridmoe.hardware.gpu import NoGpu, find_gpu, find_gpus
from hybridmoe.hardware.limits import measure, measure_units
from hybridmoe.hardware.machine import Machine, inspect_machine
from hybridmoe.hardware.settings import read_settings
from hybridmoe.kernels.product_rate import measure_products

__all__ = ["run_doctor"]

_BUSY_SHARE = 0.3
_BUSY = "other programs lower the rates: measure again when they have ended"
_ASSUMED_L2_BYTES = 512 << 10
_COLUMNS = 110


def run_doctor(*, quick: bool, models: tuple[Path, ...], as_json: bool) -> None:
    """Measure and print. models: whose GPU kernels are compiled too. Errors: ConfigError."""
    gpu = find_gpu()
    if models and isinstance(gpu, NoGpu):
        raise ConfigError(f"--compile: {gpu.reason}")
    machine, settings = inspect_machine(), read_settings()
    load = os.getloadavg()[0]
    if sys.stderr.isatty():
        click.echo(f"measuring memory and arithmetic for {2 if quick else 6} seconds ...", err=True)
    limits = measure(quick=quick)
    units = measure_units(l2_bytes=settings.l2_bytes, l3_bytes=settings.l3_bytes, quick=quick)
    product_bytes = measure_products((settings.l2_bytes or _ASSUMED_L2_BYTES) // 2)
    costs = _C.matmul_costs()
    reads = _expert_reads()
    found = find_gpus()
    gpus = () if isinstance(found, NoGpu) else found
    kernels = [] if isinstance(gpu, NoGpu) else list(report_kernels(gpus, models))
    checks = [
        *check_machine(machine, settings, limits),
        *_busy(load, machine),
        _gpu(machine),
        *(Check(name, text) for name, text in gpu_rows(gpus)),
        reads,
        *measured_units(machine, limits, units),
        Check("prompt kernels", _crossover(costs)),
        *bounds(machine, limits, units, product_bytes),
        *(Check(name, text) for report in kernels for name, text in report.rows),
        *(Check("GPU self-check", fault, "bad") for report in kernels for fault in report.faults),
    ]
    if not as_json:
        return _print(checks)
    facts = {
        "machine": asdict(machine),
        "settings": asdict(settings),
        "limits": asdict(limits),
        "units": {**asdict(units), "q4_k_products": product_bytes},
        "matmul_costs": costs,
        "expert_reads": reads.value,
        "gpus": [gpu._asdict() for gpu in gpus],
        "gpu_kernels": [report.as_json() for report in kernels],
        "checks": [asdict(check) for check in checks],
    }
    click.echo(json.dumps(facts))


def _print(checks: Iterable[Check]) -> None:
    """Print a line for each check, and below it why it is slow and what changes that."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.mark:4}  {check.name:<{width}}  {check.value}")
        indent = " " * (width + 8)
        if check.advice:
            click.echo(
                fill(check.advice, _COLUMNS, initial_indent=indent, subsequent_indent=indent)
            )
        if check.command:  # in one line, to be copied
            click.echo(f"{indent}$ {check.command}")


def _busy(load: float, machine: Machine) -> Iterator[Check]:
    if load > machine.cores * _BUSY_SHARE:
        value = f"load average {load:.1f} on {machine.cores} cores"
        yield Check("other programs", value, "warn", _BUSY, "top")


def _gpu(machine: Machine) -> Check:
    if machine.gpu is not None:
        return Check("GPU", machine.gpu, "ok")
    reason = machine.no_gpu or "no NVIDIA GPU was found"
    return Check("GPU", f"none ({reason}): attention and the output head run on the CPU, too")


def _expert_reads() -> Check:
    reason = find_reason_for_threads()
    return Check("expert reads", describe_backend(reason), "warn" if reason else "ok")


def _crossover(costs: dict[str, float]) -> str:
    if "matrix_unpack" in costs:
        return (
            f"AMX tiles from {costs['matrix_tiles_from_tokens']:.0f} tokens of an expert on "
            f"(unpack {costs['unpack']:g}, dot {costs['dot']:g}; for tiles, unpack "
            f"{costs['matrix_unpack']:g}, 16 tokens {costs['matrix_dot']:g} cycles)"
        )
    return (
        f"panels from {costs['panels_from_tokens']:.0f} tokens of an expert on "
        f"(unpack {costs['unpack']:g}, dot {costs['dot']:g}; for panels, unpack "
        f"{costs['panel_unpack']:g}, dot {costs['panel_dot']:g} cycles)"
    )

"""`hybridmoe doctor`: its options; what they start is imported when it runs."""

from pathlib import Path

import click

from hybridmoe.cli.options import SectionedCommand, debug_option

__all__ = ["doctor_command"]


@click.command("doctor", cls=SectionedCommand)
@click.option("--quick", is_flag=True, help="Measure for two seconds instead of six")
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
    """Measure this machine, say what bounds decode and prompts, and what to change.

    Memory, caches and the products of each instruction set; pages, NUMA nodes, threads, clock,
    quota and swap: each line is ok, warn or bad, with the reason and a command that changes it.
    Other programs that run at the same time lower the figures. On each kind of GPU, compile the
    kernels of the embedded model, so that its first load need not, and compare them with the CPU's.
    """
    from hybridmoe.cli.doctor import run_doctor  # torch: seconds

    run_doctor(quick=quick, models=models, as_json=as_json)

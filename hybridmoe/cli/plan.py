"""`hybridmoe plan`: the memory plan that `load` would obey, with predicted speed and cost.

Reads headers only, and for a published model that is named none. The options are here; what they
need is imported when the command runs (plan_run.py).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybridmoe.cli.model_path import ModelPath
from hybridmoe.cli.options import SectionedCommand, debug_option, load_option
from hybridmoe.errors import ConfigError
from hybridmoe.units import parse_bytes

if TYPE_CHECKING:
    from hybridmoe.planning.releases import Release

__all__ = ["plan_command"]

F = TypeVar("F", bound=Callable[..., Any])


def _size(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Read `128GiB`, `24G` (the same as GiB) or `1500GB` as bytes."""
    try:
        return None if text is None else parse_bytes(text, needs_unit=True)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _sizes(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> int | tuple[int, ...] | None:
    """Read one size, or several separated by commas."""
    if text is None or "," not in text:
        return _size(ctx, parameter, text)
    found = (_size(ctx, parameter, one) for one in text.split(","))
    return tuple(size for size in found if size is not None)


class _Finite(click.FloatRange):
    """A range without infinity, and without NaN, which lies in every range of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


_ABOVE_0 = _Finite(min=0, min_open=True)
_SHARE = _Finite(min=0, max=1)
_TOKENS = click.IntRange(min=1, max=1 << 26)


def _number(flag: str, help: str) -> Any:
    return click.option(flag, type=_ABOVE_0, help=help)


def _amount(flag: str, default: float | None, help: str) -> Any:
    return click.option(flag, type=float, default=default, show_default=True, help=help)


def _sized(flag: str, help: str) -> Any:
    return click.option(flag, metavar="SIZE", callback=_size, help=help)


_MACHINE_OPTIONS = (
    _sized("--ram", "RAM budget [default: all that is free]"),
    click.option(
        "--vram",
        metavar="SIZE[,SIZE...]",
        callback=_sizes,
        help="VRAM budget, of each GPU [default: all that is free]",
    ),
    click.option(
        "--gpu",
        metavar="NAME[,NAME...]",
        help='GPU to plan for, such as rtx-4090; several: "2x rtx-4090"; "rtx-4090,rtx-3060"',
    ),
    _number("--dram-gbs", "Read rate of RAM, GB/s [default: measured]"),
    _number("--tops", "Peak matrix throughput of the CPU, TOPS [default: measured]"),
    _number(
        "--disk-gbs",
        "Read rate of the disk, GB/s [default: measured on the file or in the models folder, or 3]",
    ),
    _number("--vram-gbs", "Read rate of VRAM, GB/s [default: the GPU's data sheet]"),
    _number("--gpu-tflops", "Rate of the tensor cores, TFLOPS [default: the data sheet]"),
    _number("--pcie-gbs", "Rate of the link to the GPU, GB/s [default: the data sheet]"),
)
_HOST_OPTIONS = (
    click.option(
        "--hosts",
        metavar="NAME:RAM:RATE,...",
        help="Plan experts pooled from hosts, rank 0 first: a:256GiB:200GB/s,b:128GiB:80GB/s",
    ),
    click.option(
        "--link-us",
        type=_ABOVE_0,
        help="Delay between hosts, one way, microseconds [default: 30]",
    ),
    click.option(
        "--link-gbs",
        type=_ABOVE_0,
        help="Rate between hosts, GB/s [default: 1.2, 10 Gbit Ethernet]",
    ),
)
_MODEL_NAMES = (
    "context_tokens", "device", "place", "expert_ram", "expert_prefetch", "kv_type", "kv_tokens",
    "max_running", "speculate",
)  # fmt: skip
_MODEL_OPTIONS = tuple(map(load_option, _MODEL_NAMES))
_SPEED_OPTIONS = (
    click.option(
        "--quant",
        metavar="TYPE",
        help="Plan as if the experts were of this type; of a model by name, its quantization",
    ),
    click.option("--hit-rate", type=_SHARE, help="Share of experts found in VRAM or RAM"),
    click.option("--vram-hit-rate", type=_SHARE, help="Share of experts found in VRAM"),
    click.option(
        "--hit-curve",
        type=click.Path(path_type=Path),
        help="JSON of slots and hit_rate, from a trace [default: uniform routing]",
    ),
    click.option("--prompt-tokens", type=_TOKENS, default=1024, show_default=True),
    click.option("--answer-tokens", type=_TOKENS, default=256, show_default=True),
)
_PRICE_OPTIONS = (
    _amount("--watts", None, "Power at work; shows the cost"),
    _amount("--price-kwh", 0.3, "Price of a kilowatt-hour"),
    _amount("--hardware-price", 0.0, "Price of the machine"),
    _amount("--lifetime-years", 4.0, "Life of the machine"),
    _amount("--utilisation", 1.0, "Share of its life in which the machine works"),
)


def _plan_options(function: F) -> F:
    options = (*_MACHINE_OPTIONS, *_HOST_OPTIONS, *_SPEED_OPTIONS, *_PRICE_OPTIONS)
    for option in reversed((*options, *_MODEL_OPTIONS)):
        function = option(function)
    return function


class _ModelOrRelease(ModelPath):
    """Path or name of a model, or the name of a published one that need not be there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Find the file, or the release. Errors: ConfigError."""
        from hybridmoe.cli.plan_model import model_or_release

        return value if isinstance(value, Path) else model_or_release(str(value))


@click.command("plan", cls=SectionedCommand)
@click.argument("model", required=False, type=_ModelOrRelease(), metavar="[MODEL]")
@_plan_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@debug_option
def plan_command(model: "Path | Release | None", as_json: bool, **options: Any) -> None:
    """Plan the memory of MODEL, and predict its speed. No weights are read.

    Of a split file the first part is enough; an incomplete download will do. Sizes are those of its
    header, or follow from it. MODEL may also be a published model that is not there: kimi-k2,
    kimi-k2-thinking, deepseek-r1, glm-4.7-flash, ...; then its quantizations are compared, and
    without --ctx the context is at most 32768. Without MODEL: the embedded model.

    With the same options and the same free memory, chat and serve do what this prints.
    """
    from hybridmoe.cli.plan_run import run_plan

    run_plan(model, as_json, options)

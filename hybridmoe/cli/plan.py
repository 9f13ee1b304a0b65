"""`hybridmoe plan`: the memory plan that `load` would obey, with predicted speed and cost.

Reads headers only. `planning.memory_plan` decides, `planning.cost_model` predicts.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hybridmoe.cli.options import debug_option, load_option, load_options_of, model_argument
from hybridmoe.cli.plan_rates import PlannedGpus, gpus_of, rates_for
from hybridmoe.cli.plan_report import Report, sections
from hybridmoe.cli.tables import print_sections
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline, with_expert_type
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.placement.budgets import plan_for, plan_within
from hybridmoe.planning.conversation import Conversation
from hybridmoe.planning.cost_model import HitCurve
from hybridmoe.planning.fewer_gpus import fewer_gpus
from hybridmoe.planning.gains import gains
from hybridmoe.planning.hit_curve import read_hit_curve
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefetch_gain import can_read_ahead, read_ahead_of
from hybridmoe.planning.price import Price, price_of
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.stage_cost import StagedCost
from hybridmoe.units import parse_bytes

__all__ = ["plan_command"]

F = TypeVar("F", bound=Callable[..., Any])
_PRICES = ("watts", "price_kwh", "hardware_price", "lifetime_years", "utilisation")


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
    _number("--tops", "Peak rate of the CPU's products, TOPS [default: measured]"),
    _number("--disk-gbs", "Read rate of the disk, GB/s [default: measured on the file]"),
    _number("--vram-gbs", "Read rate of VRAM, GB/s [default: the GPU's data sheet]"),
    _number("--gpu-tflops", "Rate of the tensor cores, TFLOPS [default: the data sheet]"),
    _number("--pcie-gbs", "Rate of the link to the GPU, GB/s [default: the data sheet]"),
)
_MODEL_NAMES = (
    "context_tokens", "device", "place", "expert_ram", "expert_prefetch", "kv_type", "kv_tokens",
    "max_running",
)  # fmt: skip
_MODEL_OPTIONS = tuple(map(load_option, _MODEL_NAMES))
_SPEED_OPTIONS = (
    click.option("--quant", metavar="TYPE", help="Plan as if the experts were of this type"),
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
    for option in reversed((*_MACHINE_OPTIONS, *_SPEED_OPTIONS, *_PRICE_OPTIONS, *_MODEL_OPTIONS)):
        function = option(function)
    return function


@click.command("plan")
@model_argument
@_plan_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@debug_option
def plan_command(model: Path | None, as_json: bool, **options: Any) -> None:
    """Plan the memory of MODEL, and predict its speed. No weights are read.

    Of a split file the first part is enough. Sizes are those of its header, or follow from it.
    With the same options and the same free memory, chat and serve do what this prints.
    """
    outline = read_outline(model or demo_path())
    if options["quant"] is not None:
        tensors = with_expert_type(outline.tensors, options["quant"])
        outline = replace(outline, tensors=tensors)
    asked = load_options_of(options)
    if options["gpu"] is not None and asked.device == "auto":
        asked = replace(asked, device="cuda")
    planned = gpus_of(asked.device, options)
    plan = plan_for(outline.config, outline.tensors, asked, planned.gpus, options["ram"])
    _check(plan, options)

    def within(budgets: Budgets) -> Plan:
        return plan_within(outline.config, outline.tensors, asked, budgets)

    report = _predict(outline, plan, planned, within, options)
    if (line := _fewer_gpus(within, planned, report, options)) is not None:
        report = replace(report, notes=(*report.notes, line))
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        print_sections(sections(report))


def _check(plan: Plan, options: Mapping[str, Any]) -> None:
    """Errors: ConfigError where the system would page, or for a conversation that is too long."""
    if plan.shortage is not None:
        raise ConfigError(plan.shortage)
    num_tokens = options["prompt_tokens"] + options["answer_tokens"]
    if num_tokens > plan.engine.context_tokens:
        raise ConfigError(
            f"{options['prompt_tokens']} tokens of prompt and {options['answer_tokens']} of answer"
            f" are more than the context of {plan.engine.context_tokens}: lower them or raise --ctx"
        )


def _predict(
    outline: Outline,
    plan: Plan,
    planned: PlannedGpus,
    within: Callable[[Budgets], Plan],
    options: Mapping[str, Any],
) -> Report:
    """Predict speed, what would raise it, and cost."""
    gpu_rates = planned.rates if plan.vram else ()
    rates, origins = rates_for(plan, outline, options, gpu_rates[0] if gpu_rates else None)
    curve = _curve(options)
    found = {"vram_rate": options["vram_hit_rate"], "hit_rate": options["hit_rate"]}
    cost = StagedCost(plan, rates, gpu_rates, curve, **found)
    num_prompt, num_answer = options["prompt_tokens"], options["answer_tokens"]
    reading = cost.prompt(num_prompt)
    answering = cost.decode(num_prompt + num_answer // 2)
    notes = [planned.note] if planned.note is not None and plan.vram else []
    if options["expert_prefetch"] is None and can_read_ahead(plan) and rates.disk is not None:
        notes.append(read_ahead_of(plan, rates, cost.hits).line(rates))
    given = ("hit_rate", "vram_hit_rate", "hit_curve")
    return Report(
        outline=outline,
        quant=options["quant"],
        plan=plan,
        notes=tuple(notes),
        rates=rates,
        gpu_rates=gpu_rates,
        origins=origins,
        hits=cost.hits,
        are_hits_given=any(options[name] is not None for name in given),
        prompt=reading,
        decode=answering,
        gains=gains(plan, within, rates, gpu_rates, _conversation(options), curve, **found),
        answer_tokens=num_answer,
        price=_price(reading.total_s + num_answer * answering.total_s, options),
        price_options={name: options[name] for name in _PRICES},
    )


def _curve(options: Mapping[str, Any]) -> HitCurve | None:
    return read_hit_curve(options["hit_curve"]) if options["hit_curve"] is not None else None


def _conversation(options: Mapping[str, Any]) -> Conversation:
    return Conversation(options["prompt_tokens"], options["answer_tokens"])


def _fewer_gpus(
    within: Callable[[Budgets], Plan],
    planned: PlannedGpus,
    report: Report,
    options: Mapping[str, Any],
) -> str | None:
    """Say which of several GPUs are predicted to be faster without the others, if any."""
    plan = report.plan
    if not plan.split or isinstance(planned.gpus, NoGpu):
        return None
    if options["vram_hit_rate"] is not None or options["hit_rate"] is not None:
        return None  # of the slots of all GPUs: those of fewer are not known
    rates = report.rates, report.gpu_rates
    found = fewer_gpus(plan, within, *rates, _conversation(options), _curve(options))
    return None if found is None else found.line([gpu.number for gpu in planned.gpus])


def _price(conversation_s: float, options: Mapping[str, Any]) -> Price | None:
    if options["watts"] is None:
        return None
    return price_of(conversation_s, **{name: options[name] for name in _PRICES})

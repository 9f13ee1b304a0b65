"""`hybridmoe plan`: where a model would live on a machine, and how fast and dear it would be there.

Reads headers only. Rates are measured here unless they are given; the decision is made by
planning.memory_plan, the prediction by planning.cost_model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hybridmoe.cli.options import debug_option, load_option
from hybridmoe.cli.plan_report import Report, sections
from hybridmoe.cli.tables import print_sections
from hybridmoe.config import KV_TYPES, EngineConfig, check_gpu_kv_type
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, read_outline, with_expert_type
from hybridmoe.gguf.split import part_path
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.disk import measure_disk
from hybridmoe.hardware.gpu import CudaGpu, choose_gpu
from hybridmoe.hardware.machine import measure
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.planning.cost_model import decode, hits_of, prompt
from hybridmoe.planning.gpu_specs import GpuSpec, spec_like, spec_named
from hybridmoe.planning.hit_curve import read_hit_curve
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.memory_plan import Plan, Problem, plan_experts
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.placement_rules import PlacementRules
from hybridmoe.planning.prefill_split import step_tokens
from hybridmoe.planning.price import Price, price_of
from hybridmoe.planning.rates import GpuRates, Rates, rates_of
from hybridmoe.units import parse_bytes

__all__ = ["plan_command"]

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT_CONTEXT = 32768


def _size(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """`128GiB`, `24G` (the same as GiB) or `1500GB` as bytes."""
    try:
        return None if text is None else parse_bytes(text, needs_unit=True)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_SHARE = click.FloatRange(min=0, max=1)
_TOKENS = click.IntRange(min=1, max=1 << 26)


def _machine_options(function: F) -> F:
    for option in reversed(
        (
            click.option(
                "--ram", metavar="SIZE", callback=_size, help="RAM to fill; what is free."
            ),
            click.option(
                "--vram", metavar="SIZE", callback=_size, help="VRAM to fill; what is free."
            ),
            click.option("--gpu", metavar="NAME", help="A card by name, such as rtx-4090."),
            load_option("device"),
            load_option("place"),
            click.option("--dram-gbs", type=_ABOVE_0, help="Memory's read rate, GB/s; measured."),
            click.option("--tops", type=_ABOVE_0, help="Peak of the CPU's products; measured."),
            click.option("--disk-gbs", type=_ABOVE_0, help="Disk's read rate; the file's disk."),
            click.option("--vram-gbs", type=_ABOVE_0, help="The GPU's memory; the card's."),
            click.option("--gpu-tflops", type=_ABOVE_0, help="Of its tensor cores; the card's."),
            click.option("--pcie-gbs", type=_ABOVE_0, help="To the GPU; the card's."),
        )
    ):
        function = option(function)
    return function


def _price_options(function: F) -> F:
    for option in reversed(
        (
            click.option("--watts", type=float, help="Power at work; shows the cost."),
            click.option("--price-kwh", type=float, default=0.3, show_default=True),
            click.option("--hardware-price", type=float, default=0.0, show_default=True),
            click.option("--lifetime-years", type=float, default=4.0, show_default=True),
            click.option(
                "--utilisation",
                type=float,
                default=1.0,
                show_default=True,
                help="Share of its life in which the machine works.",
            ),
        )
    ):
        function = option(function)
    return function


@click.command("plan")
@click.argument("model", type=click.Path(path_type=Path))
@_machine_options
@click.option("--ctx", "context_tokens", type=_TOKENS, help="Context; 32768, or the model's.")
@click.option("--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0], show_default=True)
@click.option("--quant", metavar="TYPE", help="As if the experts were quantized to this type.")
@click.option("--hit-rate", type=_SHARE, help="Chosen experts found in VRAM or RAM; uniform.")
@click.option(
    "--hit-curve",
    type=click.Path(path_type=Path),
    help="JSON of slots and hit_rate, from a trace; uniform.",
)
@click.option("--vram-hit-rate", type=_SHARE, help="Chosen experts found in VRAM; uniform.")
@click.option("--prompt-tokens", type=_TOKENS, default=1024, show_default=True)
@click.option("--answer-tokens", type=_TOKENS, default=256, show_default=True)
@_price_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def plan_command(model: Path, as_json: bool, **options: Any) -> None:
    """Say where MODEL would live, and predict its speed. No weights are read.

    Of a split file the first part is enough. Sizes are those of its header, or follow from it.
    """
    outline = read_outline(model)
    report = _report(outline, options)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        print_sections(sections(report))


def _report(outline: Outline, options: dict[str, Any]) -> Report:
    config, tensors = outline.config, outline.tensors
    if options["quant"] is not None:
        tensors = with_expert_type(tensors, options["quant"])
    context = options["context_tokens"] or min(_DEFAULT_CONTEXT, config.context_tokens)
    if context > config.context_tokens:
        raise ConfigError(f"--ctx {context}: the model's context is {config.context_tokens}")
    asked = options["prompt_tokens"] + options["answer_tokens"]
    if asked > context:
        raise ConfigError(
            f"{options['prompt_tokens']} tokens of prompt and {options['answer_tokens']} of answer"
            f" are more than the context of {context}: lower them or raise --ctx"
        )
    engine = EngineConfig(
        context_tokens=context, kv_tokens=context, kv_type=options["kv_type"], max_running=1
    )
    kv = plan_kv(config, engine, 0)
    placing = PlacementRules(options["place"])
    notes = [
        f"place: {text!r} matches no tensor." for text in placing.unused(t.name for t in tensors)
    ]
    vram_bytes, gpu = _gpu(options, notes)
    if vram_bytes:
        check_gpu_kv_type(options["kv_type"])
    if options["place"] and not vram_bytes:
        notes.append("place: without a card all tensors are on the CPU.")
    placed = placing.expert_layers((t.name for t in tensors), config.num_layers)
    pinned = placed.pinned if vram_bytes else frozenset()
    plan = plan_experts(
        Problem(
            sizes=sizes_of(tensors, config, placing.is_on_cpu),
            ram_bytes=_ram_bytes(options["ram"]),
            vram_bytes=vram_bytes,
            kv_tokens=kv.num_tokens,
            kv_token_bytes=kv.page_bytes // PAGE_TOKENS,
            step_tokens=(
                step_tokens(config, vram_bytes, context) if vram_bytes else engine.chunk_tokens
            ),
            num_pinned=config.num_experts * len(pinned),
            num_left=config.num_experts * len(placed.left),
        )
    )
    origins: dict[str, str] = {}
    rates = _rates(options, outline, plan, gpu, origins)
    curve = read_hit_curve(options["hit_curve"]) if options["hit_curve"] is not None else None
    hits = hits_of(plan, curve, vram_rate=options["vram_hit_rate"], hit_rate=options["hit_rate"])
    reading = prompt(plan, rates, hits, options["prompt_tokens"])
    middle = options["prompt_tokens"] + options["answer_tokens"] // 2
    answering = decode(plan, rates, hits, middle)
    return Report(
        outline=outline,
        quant=options["quant"],
        context_tokens=context,
        kv_type=options["kv_type"],
        plan=plan,
        pinned_layers=tuple(sorted(pinned)),
        notes=tuple(notes),
        rates=rates,
        origins=origins,
        hits=hits,
        are_hits_given=any(
            options[name] is not None for name in ("hit_rate", "vram_hit_rate", "hit_curve")
        ),
        prompt=reading,
        decode=answering,
        answer_tokens=options["answer_tokens"],
        price=_price(reading.total_s + options["answer_tokens"] * answering.total_s, options),
        price_options={
            name: options[name]
            for name in ("watts", "price_kwh", "hardware_price", "lifetime_years", "utilisation")
        },
    )


def _ram_bytes(given: int | None) -> int:
    available = topology.available_bytes() if given is None else given
    if available is None:
        raise ConfigError("how much RAM is free is unknown here: give --ram")
    return available


def _gpu(options: dict[str, Any], notes: list[str]) -> tuple[int, GpuRates | None]:
    """VRAM, and what the GPU is assumed to reach; 0 and None without one.

    notes: gets a sentence where this machine's card is planned for, or cannot be.
    """
    if options["device"] == "cpu":
        return 0, None
    card = spec_named(options["gpu"]) if options["gpu"] is not None else None
    vram = options["vram"]
    if vram is None and card is not None:
        vram = card.vram_gib << 30
    if card is None and vram is None and isinstance(here := choose_gpu(options["device"]), CudaGpu):
        card = spec_like(here.name)
        if card is not None:
            vram = here.free_bytes
            notes.append(f"The card is this machine's {here.name}; --gpu names another.")
        else:
            notes.append(
                f"{here.name} is not planned for, since its data sheet is not known here: give"
                " --vram, --vram-gbs, --gpu-tflops and --pcie-gbs."
            )
    if not vram:
        return 0, None
    sheet = card or GpuSpec(0, 0.0, 0.0, 0.0)
    figures = {
        "--vram-gbs": options["vram_gbs"] or sheet.vram_gbs,
        "--gpu-tflops": options["gpu_tflops"] or sheet.tflops,
        "--pcie-gbs": options["pcie_gbs"] or sheet.pcie_gbs,
    }
    if missing := [name for name, value in figures.items() if not value]:
        raise ConfigError(f"--vram without a speed: give --gpu NAME, or {', '.join(missing)}")
    return vram, GpuRates.assumed(*figures.values())


def _rates(
    options: dict[str, Any],
    outline: Outline,
    plan: Plan,
    gpu: GpuRates | None,
    origins: dict[str, str],
) -> Rates:
    """Given rates, and measured ones where they are not; what came from where goes to origins."""
    active = isa.active()
    dram, peak = options["dram_gbs"], options["tops"]
    origins["DRAM"] = "given" if dram else "measured"
    origins["products"] = "given" if peak else "measured"
    if dram and peak:
        dram, peak = dram * 1e9, peak * 1e12
        float_ops = None
    else:
        limits = measure()
        tiles = limits.amx_bf16 if active == "amx" else None
        measured = (tiles or limits.int8).all
        float_ops = limits.float32.all * (peak * 1e12 / measured if peak else 1.0)
        dram = dram * 1e9 if dram else limits.read.all
        peak = peak * 1e12 if peak else measured
    disk = options["disk_gbs"] * 1e9 if options["disk_gbs"] else None
    origins["disk"] = "given"
    if disk is None and plan.needs_disk:
        disk = measure_disk(_files(outline))
        origins["disk"] = "measured"
    return rates_of(active, dram=dram, peak_ops=peak, float_ops=float_ops, disk=disk, gpu=gpu)


def _files(outline: Outline) -> list[Path]:
    numbers = [n for n in range(1, outline.num_parts + 1) if n not in outline.missing_parts]
    if outline.num_parts == 1:
        return [outline.path]
    return [part_path(outline.path, number, outline.num_parts) for number in numbers]


def _price(conversation_s: float, options: dict[str, Any]) -> Price | None:
    if options["watts"] is None:
        return None
    return price_of(
        conversation_s,
        watts=options["watts"],
        price_kwh=options["price_kwh"],
        hardware_price=options["hardware_price"],
        lifetime_years=options["lifetime_years"],
        utilisation=options["utilisation"],
    )

"""Report of `hybridmoe plan`, as sections to print or as JSON, with its assumptions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybridmoe.cli.tables import Section
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.outline import Outline
from hybridmoe.planning.cost_model import Hits, Step
from hybridmoe.planning.draft_gain import DraftGain
from hybridmoe.planning.gains import Gain
from hybridmoe.planning.plan import Plan, Tier
from hybridmoe.planning.price import Price
from hybridmoe.planning.problem import span_of
from hybridmoe.planning.rates import GpuRates, Rates
from hybridmoe.units import format_bytes

__all__ = ["Report", "sections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Plan and prediction."""

    outline: Outline
    quant: str | None
    plan: Plan
    notes: tuple[str, ...]  # besides the plan's
    rates: Rates
    gpu_rates: tuple[GpuRates, ...]  # of each GPU
    origins: dict[str, str]  # of rates: "measured" or "given"
    hits: Hits
    are_hits_given: bool
    prompt: Step
    decode: Step
    gains: Sequence[Gain]
    drafts: DraftGain | None  # None: no layer for multi-token prediction is loaded
    answer_tokens: int
    price: Price | None
    price_options: dict[str, float]

    @property
    def tiers(self) -> list[tuple[str, Plan, Tier]]:
        """Kinds of memory, and the plan of each: of several GPUs, that of its layers."""
        plan = self.plan
        found = [("VRAM", stage, stage.vram) for stage in plan.stages if stage.vram]
        if plan.split:
            found = [(_gpu_name(stage), stage, vram) for _, stage, vram in found]
        return [*found, ("RAM", plan, plan.ram)]

    def as_json(self) -> dict[str, Any]:
        """Facts for JSON; docs/plan.md explains them."""
        outline, price = self.outline, self.price
        return {
            "path": str(outline.path),
            "name": outline.config.name,
            "missing_parts": list(outline.missing_parts),
            "num_estimated_tensors": outline.num_derived,
            "quant": self.quant,
            "plan": self.plan.facts(),
            "notes": list(self.notes),
            "hits": {**asdict(self.hits), "disk": self.hits.disk, "given": self.are_hits_given},
            "rates": {**asdict(self.rates), "origins": self.origins},
            "gpu_rates": [asdict(rates) for rates in self.gpu_rates],
            "prompt": _step_json(self.prompt),
            "decode": _step_json(self.decode),
            "drafts": None if self.drafts is None else self.drafts._asdict(),
            "gains": [
                {
                    "more": gain.more,
                    "prompt_tokens_per_s": gain.speed.prompt,
                    "decode_tokens_per_s": gain.speed.decode,
                }
                for gain in self.gains
            ],
            "price": None
            if price is None
            else {**asdict(price), "total": price.total, **self.price_options},
        }


def sections(report: Report) -> list[Section]:
    """Lay the report out for a terminal or a pipe."""
    found = [
        Section("", (), _facts(report)),
        Section(
            "Memory",
            ("tier", "part", "size", "share of the tier"),
            [row for tier in report.tiers for row in _tier_rows(*tier)] + _disk_rows(report),
        ),
        Section("Read per token of an answer", ("tier", "size", "of the experts"), _reads(report)),
        Section(
            "Predicted",
            ("", f"prompt of {report.prompt.num_tokens}", "a token of the answer"),
            _times(report),
        ),
    ]
    if report.gains:
        heads = ("one more", f"prompt of {report.prompt.num_tokens}, tokens/s", "answer, tokens/s")
        found.append(Section("With one more", heads, _gain_rows(report)))
    if report.price is not None:
        found.append(Section("A thousand conversations", (), _price_rows(report, report.price)))
    if said := _remarks(report):
        found.append(Section("", (), [("note", text) for text in said]))
    return found


def _facts(report: Report) -> list[tuple[str, str]]:
    plan, outline = report.plan, report.outline
    sizes, config = plan.problem.sizes, outline.config
    rates, origins = report.rates, report.origins
    quant = f", experts as {report.quant.upper()}" if report.quant else ""
    parts = ""
    if outline.num_parts > 1:
        parts = f", {outline.num_parts - len(outline.missing_parts)} of {outline.num_parts} parts"
    facts = [
        ("model", f"{printable(config.name)}{quant}, {format_bytes(sizes.total_bytes)}{parts}"),
        (
            "experts",
            f"{config.num_moe_layers} layers x {config.num_experts}, {config.top_k} for a token"
            f" of a layer, {sizes.working_set} in all; a slot takes"
            f" {format_bytes(sizes.slot_bytes)}",
        ),
        ("context", f"{plan.kv.context_tokens} tokens; steps of {_steps(plan)}"),
        ("KV cache", f"{plan.kv.num_tokens} tokens, {plan.kv.kv_type}"),
        ("DRAM", f"{rates.dram / 1e9:.1f} GB/s ({origins['DRAM']})"),
        (
            "prompt products",
            f"{rates.ops / 1e12:.2f} TOPS, of a peak that was {origins['products']}",
        ),
    ]
    if plan.needs_disk and rates.disk is not None:
        facts.append(("disk", f"{rates.disk / 1e9:.2f} GB/s ({origins['disk']})"))
    for stage, gpu in zip(plan.stages, report.gpu_rates, strict=False):
        facts.append(
            (
                "GPU",
                (f"{_gpu_name(stage)}: " if plan.split else "")
                + f"{gpu.read / 1e9:.0f} GB/s, {gpu.ops / 1e12:.0f} TFLOPS,"
                f" PCIe {gpu.pcie / 1e9:.0f} GB/s (assumed shares of the data sheet)",
            )
        )
    return facts


def _steps(plan: Plan) -> str:
    most = plan.engine.quick_chunk_tokens
    longer = f", of up to {most} while they are quick" if most > plan.step_tokens else ""
    return f"{plan.step_tokens}{longer}"


def _gpu_name(stage: Plan) -> str:
    """Name one of several GPUs by its layers."""
    problem = stage.problem
    return f"{problem.budgets.gpu_name}, layers {span_of(problem.sizes.layers)}"


def _tier_rows(name: str, plan: Plan, tier: Tier) -> list[tuple[str, str, str, str]]:
    rows = [
        (name, what, format_bytes(size), _percent(size, tier.budget_bytes))
        for what, size in tier.parts
        if size
    ]
    if plan.num_experts:
        slots = (
            f"{tier.num_experts} of {plan.num_experts} experts:"
            f" {plan.slots_per_layer(tier.num_experts):.1f} a layer,"
            f" {plan.working_set_ratio(tier.num_experts):.2f} x a token's"
        )
        share = _percent(tier.expert_bytes, tier.budget_bytes)
        rows.append((name, slots, format_bytes(tier.expert_bytes), share))
    share = _percent(tier.free_bytes, tier.budget_bytes)
    rows.append((name, "free", format_bytes(tier.free_bytes), share))
    return rows


def _disk_rows(report: Report) -> list[tuple[str, str, str, str]]:
    plan = report.plan
    if not plan.needs_disk:
        return []
    size = plan.problem.sizes.all_expert_bytes * plan.num_disk_experts // plan.num_experts
    return [("disk", f"{plan.num_disk_experts} experts", format_bytes(size), "")]


def _reads(report: Report) -> list[tuple[str, str, str]]:
    found = report.hits
    shares = {"VRAM": found.vram, "RAM": found.ram, "disk": found.disk}
    return [
        (tier, format_bytes(size), f"{100 * shares[tier]:.1f} %")
        for tier, size in report.decode.read_bytes.items()
        if size >= 1
    ]


def _times(report: Report) -> list[tuple[str, str, str]]:
    rows = []
    for what, whole in report.prompt.seconds.items():
        one = report.decode.seconds[what]
        if whole > 0 or one > 0:
            rows.append((what, _seconds(whole), _seconds(one)))
    rows.append(("in all", _seconds(report.prompt.total_s), _seconds(report.decode.total_s)))
    rows.append(
        (
            "tokens/s",
            _number(report.prompt.tokens_per_s),
            _number(report.decode.tokens_per_s),
        )
    )
    return rows


def _gain_rows(report: Report) -> list[tuple[str, str, str]]:
    prompt, decode = report.prompt.tokens_per_s, report.decode.tokens_per_s
    return [
        (gain.more.removeprefix("1 "), _gain(prompt, speed.prompt), _gain(decode, speed.decode))
        for gain in report.gains
        for speed in [gain.speed]
    ]


def _gain(before: float, after: float) -> str:
    return f"{after - before:+.2g} ({100 * (after / before - 1):+.1f} %)"


def _price_rows(report: Report, price: Price) -> list[tuple[str, str]]:
    given = report.price_options
    years, share = given["lifetime_years"], given["utilisation"]
    return [
        (
            "one takes",
            f"{report.prompt.total_s:.1f} s of prompt + {report.answer_tokens} tokens x"
            f" {report.decode.total_s:.3f} s = {price.seconds:.1f} s, one at a time",
        ),
        (
            "energy",
            f"1000 x {price.seconds:.1f} s x {given['watts']:g} W = {price.kwh:.2f} kWh,"
            f" x {given['price_kwh']:g} = {price.energy:.2f}",
        ),
        (
            "hardware",
            f"{given['hardware_price']:g} x {1000 * price.seconds / 86400:.2f} days /"
            f" ({years:g} years x {share:g} of the time) = {price.hardware:.2f}",
        ),
        ("in all", f"{price.total:.2f}"),
    ]


def _remarks(report: Report) -> list[str]:
    plan, outline = report.plan, report.outline
    said = [*plan.warnings, *plan.notes, *report.notes]
    if plan.vram and (pinned := plan.problem.layers.gpu):
        said.append(
            f"The experts of layers {_ranges(sorted(pinned))} are in VRAM for good:"
            f" {plan.problem.num_gpu_pinned} of its {plan.num_vram_slots} slots."
        )
    if outline.num_derived == len(outline.tensors):
        said.append("Sizes are the release's; files of one quantization differ by a few percent.")
    elif outline.num_derived:
        said.append(
            f"Estimate: parts {_ranges(outline.missing_parts)} are missing; the types of"
            f" {outline.num_derived} of {len(outline.tensors)} tensors follow from the others'."
        )
    if (plan.needs_disk or plan.num_vram_slots) and not report.are_hits_given:
        said.append(
            "Routing is taken to be uniform, the floor for a cache; --hit-curve or --hit-rate give"
            " what a trace showed."
        )
    if report.drafts is not None:
        rate = _number(report.drafts.gain * report.decode.tokens_per_s)
        said.append(f"Multi-token prediction: {report.drafts.line}: {rate} tokens/s.")
    if plan.vram:
        said.append("The GPU's speed is assumed from its data sheet, not measured.")
    return said


def _ranges(numbers: Sequence[int]) -> str:
    """Format 1, 2, 3, 5 as `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "num_tokens": step.num_tokens,
        "tokens_per_s": step.tokens_per_s,
        "seconds": step.seconds,
        "read_bytes": step.read_bytes,
    }


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _seconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"

"""What `hybridmoe plan` found, as sections to print or as JSON; what is assumed is said."""

from dataclasses import asdict, dataclass
from typing import Any

from hybridmoe.cli.tables import Section
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.outline import Outline
from hybridmoe.planning.cost_model import Hits, Step
from hybridmoe.planning.memory_plan import Plan, Tier
from hybridmoe.planning.price import Price
from hybridmoe.planning.rates import Rates
from hybridmoe.units import format_bytes

__all__ = ["Report", "sections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is printed."""

    outline: Outline
    quant: str | None
    context_tokens: int
    kv_type: str
    plan: Plan
    pinned_layers: tuple[int, ...]  # whose experts are in VRAM for good
    notes: tuple[str, ...]  # what else is to be said
    rates: Rates
    origins: dict[str, str]  # of rates: "measured" or "given"
    hits: Hits
    are_hits_given: bool
    prompt: Step
    decode: Step
    answer_tokens: int
    price: Price | None
    price_options: dict[str, float]

    @property
    def tiers(self) -> tuple[Tier, ...]:
        return (self.plan.vram, self.plan.ram) if self.plan.vram else (self.plan.ram,)

    def as_json(self) -> dict[str, Any]:
        plan, outline = self.plan, self.outline
        return {
            "path": str(outline.path),
            "name": outline.config.name,
            "missing_parts": list(outline.missing_parts),
            "num_estimated_tensors": outline.num_derived,
            "quant": self.quant,
            "context_tokens": self.context_tokens,
            "kv_type": self.kv_type,
            "total_bytes": plan.problem.sizes.total_bytes,
            "token_cycle": plan.problem.sizes.token_cycle,
            "slot_bytes": plan.slot_bytes,
            "tiers": {
                tier.name: {
                    "budget_bytes": tier.budget_bytes,
                    "used_bytes": tier.used_bytes,
                    "parts": dict(tier.parts),
                    "num_experts": tier.num_experts,
                    "expert_bytes": tier.expert_bytes,
                    "slots_per_layer": plan.slots_per_layer(tier.num_experts),
                    "cycle_ratio": plan.cycle_ratio(tier.num_experts) if plan.num_experts else None,
                }
                for tier in self.tiers
            },
            "pinned_layers": list(self.pinned_layers),
            "num_disk_experts": plan.num_disk_experts,
            "hits": {**asdict(self.hits), "disk": self.hits.disk, "given": self.are_hits_given},
            "rates": {**asdict(self.rates), "origins": self.origins},
            "prompt": _step_json(self.prompt),
            "decode": _step_json(self.decode),
            "price": None
            if self.price is None
            else {**asdict(self.price), "total": self.price.total, **self.price_options},
            "warnings": [*plan.warnings, *self.notes],
        }


def sections(report: Report) -> list[Section]:
    """For a terminal or a pipe."""
    found = [
        Section("", (), _facts(report)),
        Section(
            "Who lives where",
            ("tier", "what", "size", "share of the tier"),
            [row for tier in report.tiers for row in _tier_rows(report, tier)] + _disk_rows(report),
        ),
        Section("Read per token of an answer", ("tier", "size", "of the experts"), _reads(report)),
        Section(
            "Predicted",
            ("", f"prompt of {report.prompt.num_tokens}", "a token of the answer"),
            _times(report),
        ),
    ]
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
            f"{config.num_moe_layers} layers x {config.num_experts}, {config.top_k} for a token;"
            f" a slot takes {format_bytes(plan.slot_bytes)}",
        ),
        ("token cycle", f"{sizes.token_cycle} experts"),
        (
            "context",
            f"{report.context_tokens} tokens, latents {report.kv_type},"
            f" {format_bytes(plan.problem.kv_bytes)}",
        ),
        ("DRAM", f"{rates.dram / 1e9:.1f} GB/s ({origins['DRAM']})"),
        (
            "prompt products",
            f"{rates.ops / 1e12:.2f} TOPS, of a peak that was {origins['products']}",
        ),
    ]
    if plan.needs_disk and rates.disk is not None:
        facts.append(("disk", f"{rates.disk / 1e9:.2f} GB/s ({origins['disk']})"))
    if plan.vram and rates.gpu is not None:
        facts.append(
            (
                "GPU",
                f"{rates.gpu.read / 1e9:.0f} GB/s, {rates.gpu.ops / 1e12:.0f} TFLOPS,"
                f" PCIe {rates.gpu.pcie / 1e9:.0f} GB/s (assumed shares of the data sheet)",
            )
        )
    return facts


def _tier_rows(report: Report, tier: Tier) -> list[tuple[str, str, str, str]]:
    plan = report.plan
    rows = [
        (tier.name, what, format_bytes(size), _percent(size, tier.budget_bytes))
        for what, size in tier.parts
        if size
    ]
    if plan.num_experts:
        slots = (
            f"{tier.num_experts} of {plan.num_experts} experts:"
            f" {plan.slots_per_layer(tier.num_experts):.1f} a layer,"
            f" {plan.cycle_ratio(tier.num_experts):.2f} x the token cycle"
        )
        share = _percent(tier.expert_bytes, tier.budget_bytes)
        rows.append((tier.name, slots, format_bytes(tier.expert_bytes), share))
    rows.append(
        (
            tier.name,
            "free",
            format_bytes(tier.free_bytes),
            _percent(tier.free_bytes, tier.budget_bytes),
        )
    )
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
    said = [*plan.warnings, *report.notes]
    if report.pinned_layers:
        said.append(
            f"The experts of layers {_ranges(report.pinned_layers)} are in VRAM for good:"
            f" {plan.problem.num_pinned} of its {plan.num_vram_slots} slots."
        )
    if outline.num_derived:
        said.append(
            f"Estimate: parts {_ranges(outline.missing_parts)} are not there; the types of"
            f" {outline.num_derived} of {len(outline.tensors)} tensors follow from the others'."
        )
    if (plan.needs_disk or plan.num_vram_slots) and not report.are_hits_given:
        said.append(
            "Routing is taken to be uniform, the floor for a cache; --hit-curve or --hit-rate say"
            " what a trace showed."
        )
    if plan.vram:
        said.append("A card's speed is assumed from its data sheet; it was not checked on one.")
    return said


def _ranges(numbers: tuple[int, ...]) -> str:
    """1, 2, 3, 5 as `1-3, 5`."""
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

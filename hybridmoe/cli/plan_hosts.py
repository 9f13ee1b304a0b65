"""Run of `hybridmoe plan --hosts`: shares of the experts on several hosts, and predicted speed."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.outline import Outline
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import measure
from hybridmoe.placement.budgets import plan_within
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.expert_shares import HostRate, held_by, split_experts
from hybridmoe.planning.memory_plan import RAM_RESERVE_BYTES
from hybridmoe.planning.model_sizes import ModelSizes, sizes_of
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.pooled_cost import Host, Link, PooledCost, PooledStep
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.rates import Rates, rates_of
from hybridmoe.units import format_bytes, parse_bytes

__all__ = ["parse_hosts", "run_hosts_plan"]

_MOST_HOSTS = 8
# Options that say of one machine what --hosts says of each, or that mean a GPU or a cache.
_OTHERS = (
    "ram", "vram", "gpu", "dram_gbs", "vram_gbs", "gpu_tflops", "pcie_gbs", "hit_rate",
    "vram_hit_rate", "hit_curve", "watts", "expert_ram", "place",
)  # fmt: skip


_LINK_US, _LINK_GBS = 30.0, 1.2  # of 10 Gbit Ethernet


def parse_hosts(text: str) -> tuple[HostRate, ...]:
    """Read `a:256GiB:200GB/s,b:128GiB:80GB/s`: name, RAM, read rate. Errors: ConfigError."""
    hosts = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([\w.-]+):([^:]+):\s*([0-9.]+)\s*(?:GB/s)?\s*", part, re.I)
        try:
            rate = float(match[3]) if match else 0.0
        except ValueError:
            rate = 0.0
        if match is None or not 0.0 < rate < 1e5:
            raise ConfigError(f"--hosts {part!r:.60}: expected NAME:RAM:RATE, as a:256GiB:200GB/s")
        try:
            ram_bytes = parse_bytes(match[2], needs_unit=True)
        except ConfigError as error:
            raise ConfigError(f"--hosts {part!r:.60}: RAM {error}") from None
        hosts.append(HostRate(match[1], ram_bytes, rate))
    if not 2 <= len(hosts) <= _MOST_HOSTS:
        raise ConfigError(f"--hosts: {len(hosts)} given, expected 2 to {_MOST_HOSTS}")
    if len({host.name for host in hosts}) < len(hosts):
        raise ConfigError("--hosts: two hosts have the same name")
    return tuple(hosts)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Hosts, their shares, and what is predicted."""

    sizes: ModelSizes
    plan: Plan  # of rank 0, without its experts
    given: tuple[HostRate, ...]
    capacities: tuple[HostRate, ...]  # the same with RAM for experts alone
    hosts: tuple[Host, ...]
    link: Link
    prompt: PooledStep
    decode: PooledStep

    def share_bytes(self, index: int) -> int:
        """Bytes of one host's experts."""
        return sum(self.sizes.expert_bytes) * len(self.hosts[index].experts)

    @property
    def disk_bytes(self) -> int:
        """Bytes of experts that no RAM holds."""
        shares = (
            self.share_bytes(i) - capacity.ram_bytes for i, capacity in enumerate(self.capacities)
        )
        return sum(max(0, rest) for rest in shares)


def run_hosts_plan(
    outline: Outline,
    asked: LoadOptions,
    check: Callable[[Plan], None],
    as_json: bool,
    options: Mapping[str, Any],
) -> None:
    """Plan, predict and print. check: refuses a plan. options: of the command.

    Errors: ConfigError.
    """
    pool = _plan(outline, asked, check, options)
    if as_json:
        click.echo(json.dumps({"verdict": _verdict(pool), **_as_json(pool)}))
        return
    print_sections([Section("", (), [("verdict", _verdict(pool))]), *_sections(pool, outline)])


def _plan(
    outline: Outline,
    asked: LoadOptions,
    check: Callable[[Plan], None],
    options: Mapping[str, Any],
) -> _Pool:
    for name in _OTHERS:
        if options[name] not in (None, ()):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is of one machine, and --hosts of several: leave one out")
    if asked.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {asked.device}: --hosts plans for CPUs alone")
    given = parse_hosts(options["hosts"])
    asked = replace(asked, device="cpu")
    plan = plan_within(
        *held_by(outline.config, outline.tensors, range(1)),
        asked,
        Budgets(ram_bytes=given[0].ram_bytes),
    )
    if plan.shortage is not None:
        raise ConfigError(f"host {given[0].name}, rank 0: {plan.shortage}")
    check(plan)
    sizes = sizes_of(outline.tensors, outline.config).network
    own = max(0, plan.ram.budget_bytes - sum(size for _, size in plan.ram.parts))
    capacities = (
        given[0]._replace(ram_bytes=own),
        *(h._replace(ram_bytes=max(0, h.ram_bytes - RAM_RESERVE_BYTES)) for h in given[1:]),
    )
    shares = split_experts(outline.config.num_experts, sizes.all_expert_bytes, capacities)
    rates = _rates(given, options)
    per_expert = sum(sizes.expert_bytes)
    hosts = tuple(
        Host(capacity.name, rate, share, min(1.0, capacity.ram_bytes / (per_expert * len(share))))
        for capacity, rate, share in zip(capacities, rates, shares, strict=True)
    )
    missing = [h for h in hosts if h.in_ram < 1.0]
    if missing and options["disk_gbs"] is None:
        rest = sizes.all_expert_bytes - sum(capacity.ram_bytes for capacity in capacities)
        raise ConfigError(
            f"the hosts' RAM holds {format_bytes(sum(c.ram_bytes for c in capacities))} of the"
            f" {format_bytes(sizes.all_expert_bytes)} of experts, {format_bytes(max(0, rest))} too"
            " little: --disk-gbs predicts the speed with the others on disk"
        )
    link = Link((options["link_us"] or _LINK_US) * 1e-6, (options["link_gbs"] or _LINK_GBS) * 1e9)
    cost = PooledCost(plan, sizes, hosts, link)
    num_prompt, num_answer = options["prompt_tokens"], options["answer_tokens"]
    return _Pool(
        sizes, plan, given, capacities, hosts, link,
        cost.prompt(num_prompt), cost.decode(num_prompt + num_answer // 2),
    )  # fmt: skip


def _rates(hosts: Sequence[HostRate], options: Mapping[str, Any]) -> list[Rates]:
    """Rates of each host: its RAM's as given, products as given or as measured here."""
    peak, float_ops = options["tops"], None
    if peak:
        peak *= 1e12
    else:
        limits = measure()
        peak, float_ops = limits.prompts.all, limits.float32.all
    disk = options["disk_gbs"] and options["disk_gbs"] * 1e9
    common = {"peak_ops": peak, "float_ops": float_ops, "disk": disk, "has_vbmi": isa.has_vbmi()}
    return [rates_of(isa.active(), dram=host.read_gbs * 1e9, **common) for host in hosts]


def _bound(pool: _Pool, step: PooledStep) -> str:
    """Name the host that the others wait for, and for how much of the experts' time."""
    most = max(step.waited_for)
    name = pool.hosts[step.waited_for.index(most)].name
    return f"{name}, {100 * most / sum(step.waited_for):.0f} %"


def _verdict(pool: _Pool) -> str:
    names = " + ".join(host.name for host in pool.hosts)
    rate = pool.decode.tokens_per_s
    said = (
        f"runs on {names}: {rate:.{1 if rate >= 1 else 2}f} tokens/s, first word of a"
        f" {pool.prompt.num_tokens}-token prompt after {pool.prompt.total_s:.3g} s"
    )
    if pool.disk_bytes:
        return f"{said}; {format_bytes(pool.disk_bytes)} of experts stay on disk"
    return f"{said}; all experts fit into RAM"


def _sections(pool: _Pool, outline: Outline) -> list[Section]:
    c, sizes = outline.config, pool.sizes
    message = 8 * c.hidden + 8 * c.top_k
    facts = [
        ("model", f"{printable(c.name)}, {format_bytes(sizes.total_bytes)}"),
        ("experts", f"{len(sizes.experts)} layers x {c.num_experts}, {c.top_k} for a token"),
        (
            "link",
            f"{pool.link.delay_s * 1e6:g} us one way, {pool.link.bytes_per_s / 1e9:g} GB/s;"
            f" a token takes {format_bytes(message)} a layer and host, there and back",
        ),
    ]
    rows = []
    for index, (host, capacity, given) in enumerate(
        zip(pool.hosts, pool.capacities, pool.given, strict=True)
    ):
        held = min(pool.share_bytes(index), capacity.ram_bytes)
        rows.append(
            (
                host.name,
                f"{host.experts.start}-{host.experts.stop - 1}",
                format_bytes(pool.share_bytes(index)),
                format_bytes(given.ram_bytes - capacity.ram_bytes),
                format_bytes(capacity.ram_bytes - held),
                f"{given.read_gbs:g} GB/s",
            )
        )
    head = ("host", "experts of a layer", "size", "all else", "free", "RAM read at")
    times = [
        (name, *(f"{1e3 * step.seconds[name]:.1f} ms" for step in (pool.prompt, pool.decode)))
        for name in pool.prompt.seconds
    ]
    for what, value in (("in all", "total_s"), ("tokens/s", "tokens_per_s")):
        figures = [getattr(step, value) for step in (pool.prompt, pool.decode)]
        unit = 1e3 if value == "total_s" else 1.0
        times.append((what, *(f"{unit * x:.1f}{' ms' if unit > 1 else ''}" for x in figures)))
    times.append(("waits for", _bound(pool, pool.prompt), _bound(pool, pool.decode)))
    prompt = f"prompt of {pool.prompt.num_tokens}"
    return [
        Section("", (), facts),
        Section("Shares", head, rows),
        Section("Predicted", ("", prompt, "a token of the answer"), times),
        Section(
            "", (), [("note", "Every host is taken to multiply as fast, and routing uniform.")]
        ),
    ]


def _as_json(pool: _Pool) -> dict[str, Any]:
    def step(found: PooledStep) -> dict[str, Any]:
        rates = {"tokens_per_s": found.tokens_per_s, "total_s": found.total_s}
        return {**asdict(found), **rates}

    return {
        "hosts": [
            {
                "name": host.name,
                "experts": [host.experts.start, host.experts.stop],
                "expert_bytes": pool.share_bytes(index),
                "expert_ram_bytes": pool.capacities[index].ram_bytes,
                "in_ram": host.in_ram,
                "read_gbs": pool.given[index].read_gbs,
            }
            for index, host in enumerate(pool.hosts)
        ],
        "link": pool.link._asdict(),
        "disk_bytes": pool.disk_bytes,
        "prompt": step(pool.prompt),
        "decode": step(pool.decode),
    }

"""Routed experts at Kimi K2's shapes (hidden 7168, width 2048, top-8), beside limits and peers.

    python bench/bench_expert_forward.py                    # the promised cases
    python bench/bench_expert_forward.py --types Q4_K --isa avx512 --isa avx2
    python bench/bench_expert_forward.py --all --peers none --out table.json   # everything

Decode is memory: bytes of the distinct experts per second, beside a plain read of memory. Prefill
is arithmetic: operations per second, beside a loop in registers. No call finds its experts cached.
Bars of decode are those of the best instruction set, and for low bits AVX2's; those of prefill are
of each set. Rows of a set that this machine lacks are listed as not run.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._expert_cases import TYPES, Case, all_cases, promised_cases
from bench._expert_peers import Best, best_of_peers, installed_peers
from bench._experts import TOP_K, Stack, expert_bytes
from bench._harness import RESULTS, Row, Times, machine, print_report
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits, Rate, measure
from hybridmoe.kernels.ops import expert_ffn

AGAIN_AFTER_S = 150


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--isa", "names", multiple=True, help="instruction set; default: the active one")
@click.option("--types", multiple=True, type=click.Choice([t.name for t in TYPES]))
@click.option("--all", "everything", is_flag=True, help="types x regimes x instruction sets")
@click.option("--quick", is_flag=True, help="fewer calls, less memory; for a look")
@click.option("--memory", type=float, help="GiB of experts; default 1.5, or 1 if quick")
@click.option("--minutes", type=float, default=float("inf"), help="rows after that are not run")
@click.option("--peers", type=click.Choice(["installed", "none"]), default="installed")
@click.option("--out", is_flag=False, flag_value="", help="write the JSON [default: results/]")
def main(
    names: tuple[str, ...],
    types: tuple[str, ...],
    everything: bool,
    quick: bool,
    memory: float | None,
    minutes: float,
    peers: str,
    out: str | None,
) -> None:
    _keep_stdout_for_the_report()
    end = time.monotonic() + 60 * minutes
    if names or types or everything:
        known = [name for name in isa.supported() if name != "scalar" or len(isa.supported()) == 1]
        chosen = list(names) or (known if everything else [isa.active()])
        cases = all_cases(chosen, [Type[name] for name in types] or list(TYPES), not everything)
    else:
        cases = promised_cases(isa.active())
    memory_bytes = int((memory or (1 if quick else 1.5)) * 2**30)
    limits = MeasuredLimits([case.isa for case in cases], quick)
    peer_names = installed_peers() if peers == "installed" else ()
    found: dict[Case, Found] = {}
    num_experts = {}
    for type in dict.fromkeys(case.type for case in cases):
        if time.monotonic() > end:
            break
        stack = Stack.random(type, memory_bytes)
        num_experts[type.name] = stack.num_experts
        chosen_cases = [case for case in cases if case.type == type and case.isa in limits.known]
        for case, result in _run_type(chosen_cases, stack, peer_names, 0.2 if quick else 1.0):
            found[case] = result
            print(f"{case.name}: {result.value:.2f} {case.unit}", file=sys.stderr)
        del stack
        gc.collect()
        limits.update()
    limits.update(now=True)
    about = {
        "limits": {name: asdict(known) for name, known in limits.known.items()},
        "experts": num_experts,
        "top_k": TOP_K,
        "peers": list(peer_names),
    }
    path = Path(out) if out else RESULTS / f"{machine()['date']}_expert_forward.json"
    rows = [
        _row(case, found.get(case), limits.known.get(case.isa), num_experts.get(case.type.name))
        for case in cases
    ]
    print_report(rows, about=about, out=None if out is None else path)


class MeasuredLimits:
    """Limits of each instruction set that runs here, measured repeatedly; the best counts.

    What else runs on a machine can only lower a limit, and the rows are measured at other times.
    """

    def __init__(self, names: list[str], quick: bool) -> None:
        supported = [name for name in dict.fromkeys(names) if name in isa.supported()]
        self._quick = quick
        self.known = {name: self._measure(name) for name in supported}
        self._last = time.monotonic()

    def update(self, *, now: bool = False) -> None:
        """Measure if the last time is long ago, or `now`."""
        if not now and time.monotonic() - self._last < AGAIN_AFTER_S:
            return
        for name, before in self.known.items():
            self.known[name] = _higher(before, self._measure(name))
        self._last = time.monotonic()

    def _measure(self, name: str) -> Limits:
        with isa.forced(name):
            return measure(quick=self._quick)


@dataclass(frozen=True, slots=True)
class Found:
    """Result of one case."""

    value: float
    times: Times
    peer: Best | None


def _run_type(
    cases: list[Case], stack: Stack, peer_names: tuple[str, ...], budget_s: float
) -> Iterator[tuple[Case, Found]]:
    best: dict[tuple[bool, int], Best | None] = {}  # peers choose their instructions themselves
    for case in cases:
        regime = (case.is_prefill, case.tokens)
        if case.has_peer and regime not in best:
            best[regime] = best_of_peers(peer_names, stack, case, budget_s / 2)
        with isa.forced(case.isa):
            value, times = case.measure(
                lambda call: expert_ffn(call.x, call.ids, call.weights, *stack.weights),
                num_experts=stack.num_experts,
                bytes_of_expert=expert_bytes(stack.type),
                budget_s=budget_s if case.has_peer else budget_s / 2,
                at_least=5,
            )
        yield case, Found(value, times, best.get(regime))


def _row(case: Case, found: Found | None, limits: Limits | None, num_experts: int | None) -> Row:
    if found is None or limits is None or num_experts is None:
        why = f"{case.isa} is not supported here" if limits is None else "no time was left"
        return Row(case.name, None, case.unit, note=why)
    limit = case.limit(limits)
    peer = None if found.peer is None else found.peer.rate
    notes = [str(found.times)]
    if found.peer is not None:
        notes.append(f"peer: {found.peer.name}")
    if case.is_prefill and (memory := case.memory_limit(limits)) < limit:
        notes.append(f"memory allows {memory:.2f}")
    if not case.is_prefill and case.tokens > 1:
        tokens = case.tokens_of_expert(num_experts)
        allowed = case.arithmetic_limit(limits, num_experts)
        notes.append(f"{tokens:.1f} tokens an expert, arithmetic allows {allowed:.0f}")
    bar = case.bar(limit, peer)
    return Row(case.name, found.value, case.unit, limit, peer, bar, "; ".join(notes))


def _higher(a: Limits, b: Limits) -> Limits:
    """Take the higher of each rate."""

    def rate(x: Rate | None, y: Rate | None) -> Rate | None:
        return Rate(max(x.one, y.one), max(x.all, y.all)) if x and y else x

    return Limits(*(rate(getattr(a, f.name), getattr(b, f.name)) for f in fields(Limits)))


def _keep_stdout_for_the_report() -> None:
    """Redirect stdout to stderr: a peer's native code prints, even while it is unloaded."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", buffering=1)


if __name__ == "__main__":
    main()

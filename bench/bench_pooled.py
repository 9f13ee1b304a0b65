"""Experts pooled from two hosts beside what `hybridmoe plan --hosts` predicts, on one machine.

    python bench/bench_pooled.py                       # network namespaces, 10 Gbit; needs root
    python bench/bench_pooled.py --gbit 0              # over loopback
    python bench/bench_pooled.py --shape thin          # where messages count more

Each host has one core and half of the experts of a slice of Kimi K2. The link between both is
measured by an echo, and given to the plan as --link-us and --link-gbs would be. Both hosts read one
memory: where both compute, each has half of what both cores read. Rows of one host with all experts
show how far the plan is off without any network; "by one's" takes that host's measured time, and
adds what the plan says of the difference.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hybridmoe
from bench._harness import RESULTS, Row, machine, print_report
from bench._predicted import between, plan_of
from bench._two_hosts import echoing, measured_link, two_hosts
from bench.synthetic import K2_SLICE, write_synthetic
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware.limits import measure, measure_read
from hybridmoe.planning.cost_model import Hits, decode
from hybridmoe.planning.pooled_cost import Host, Link, PooledCost
from hybridmoe.planning.prompt_cost import prompt

ACCURACY = 0.75  # an error of at most a quarter
# Messages as long as Kimi K2's, and little between them.
THIN = replace(
    K2_SLICE, num_layers=6, num_experts=16, expert_inter=128, dense_inter=512, num_heads=8,
    q_lora_rank=256, vocab_size=512,
)  # fmt: skip
SHAPES = {"k2": replace(K2_SLICE, num_layers=3, num_experts=16), "thin": THIN}
QUIET = 0.02  # quantile of the steps: those that other programs on the machine left alone
PORT = 29511


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shape", type=click.Choice(list(SHAPES)), default="k2", show_default=True)
@click.option("--expert-type", default="Q4_K", show_default=True)
@click.option("--gbit", default=10.0, show_default=True, help="Rate of the link; 0 = loopback.")
@click.option("--prompt", "num_prompt", default=256, show_default=True)
@click.option("--decode", "num_decode", default=32, show_default=True)
@click.option("--turns", default=5, show_default=True)
@click.option("--out", is_flag=False, flag_value="", help="Write the JSON.")
@click.option("--as-rank-0", "role", nargs=2, hidden=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the synthetic file here.")
def main(
    shape: str,
    expert_type: str,
    gbit: float,
    num_prompt: int,
    num_decode: int,
    turns: int,
    out: str | None,
    role: tuple[str, str] | None,
    keep: Path | None,
) -> None:
    if role is not None:
        assert keep is not None
        print(json.dumps(measure_as_rank_0(keep, *role, num_prompt, num_decode, turns)))
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = keep or folder / "model.gguf"
        if not path.exists():
            write_synthetic(path, SHAPES[shape], expert_type=QuantType[expert_type])
        hosts = stack.enter_context(two_hosts(gbit))
        stack.enter_context(echoing(hosts))
        common = {"WORLD_SIZE": "2", "HYBRIDMOE_THREADS": "1", "HYBRIDMOE_PIN": "0"}
        key = folder / "key"
        key.write_text("a key of this run alone\n")
        key.chmod(0o600)
        address = f"{hosts.addresses[0]}:{PORT}"
        cluster = ("--cluster-address", address, "--cluster-key-file", str(key))
        worker = hosts.start(
            1, sys.executable, "-m", "hybridmoe", "serve", str(path), "--expert-parallel",
            "--expert-share", "1,1", *cluster, RANK="1", **common,
        )  # fmt: skip
        stack.callback(worker.kill)
        sizes = ("--prompt", str(num_prompt), "--decode", str(num_decode), "--turns", str(turns))
        rank_0 = hosts.start(
            0, sys.executable, __file__, "--keep", str(path), *sizes,
            "--as-rank-0", address, str(key), RANK="0", ECHO=hosts.addresses[1],
            READ=str(measure_read()), **common,
        )  # fmt: skip
        text, _ = rank_0.communicate()
        found = json.loads(text.splitlines()[-1])
    sizes_of_shape = SHAPES[shape]
    name = f"{shape} {sizes_of_shape.num_layers}x{sizes_of_shape.num_experts} {expert_type}"
    rows = [row(f"{name} {what}", *found[what], has_bar=what in PROMISED) for what in ORDER]
    about = {"link": found["link"], "read_gbs": found["read_gbs"]}
    target = Path(out) if out else RESULTS / f"{machine()['date']}_pooled.json"
    print_report(rows, about=about, out=None if out is None else target)


PROMISED = ("answer, two hosts", "prompt, two hosts")
ORDER = (
    *PROMISED,
    "answer, two hosts, by one's",
    "prompt, two hosts, by one's",
    "answer, one host",
    "prompt, one host",
)


def row(what: str, predicted: float, measured: float, *, has_bar: bool) -> Row:
    note = f"predicted {predicted:.2f}, measured {measured:.2f} tok/s"
    accuracy = 1 - abs(predicted / measured - 1)
    return Row(what, accuracy, "of 1", None, None, ACCURACY if has_bar else None, note)


def measure_as_rank_0(
    path: Path, address: str, key: str, num_prompt: int, num_decode: int, turns: int
) -> dict[str, object]:
    """Measure link, limits and speeds, and predict. Runs on the first host."""
    link = Link(*measured_link(os.environ["ECHO"]))
    pooled = {"expert_parallel": True, "cluster_address": address, "cluster_key_file": key}
    before = measure()
    speeds = []
    for options in ({}, {**pooled, "expert_share": (1.0, 1.0)}):
        with hybridmoe.load(path, num_threads=1, expert_prefetch=0, **options) as llm:
            speeds.append(run(llm, num_prompt, num_decode, turns))
    rates = between(before, measure())
    plan = plan_of(path, num_prompt + num_decode)
    sizes = plan.problem.sizes
    num = sizes.config.num_experts
    at_once = replace(rates, dram=min(rates.dram, float(os.environ["READ"]) / 2))
    hosts = [Host("a", rates, range(num // 2)), Host("b", at_once, range(num // 2, num))]
    cost = PooledCost(plan, sizes, hosts, link)
    middle, all_here = num_prompt + num_decode // 2, Hits(0.0, 1.0)
    found = {}
    for index, (what, one, two) in enumerate(
        (
            ("prompt", prompt(plan, rates, all_here, num_prompt), cost.prompt(num_prompt)),
            ("answer", decode(plan, rates, all_here, middle), cost.decode(middle)),
        )
    ):
        alone, pooled_rate = (speed[index] for speed in speeds)
        found[f"{what}, one host"] = (one.tokens_per_s, alone)
        found[f"{what}, two hosts"] = (two.tokens_per_s, pooled_rate)
        # What the plan says of one host, as it was measured, and of the difference.
        by_one = 1 / (1 / alone + 1 / two.tokens_per_s - 1 / one.tokens_per_s)
        found[f"{what}, two hosts, by one's"] = (by_one, pooled_rate)
    about = {"link": {"us": 1e6 * link.delay_s, "gbs": link.bytes_per_s / 1e9}}
    return {**found, **about, "read_gbs": rates.dram / 1e9}


def run(llm: hybridmoe.LLM, num_prompt: int, num_decode: int, turns: int) -> tuple[float, float]:
    """Tokens/s of prompts, none of which begins as an earlier one, and of answers."""
    prompts, steps = [], []
    for turn in range(turns + 1):
        ids = np.random.default_rng(turn).integers(0, 256, num_prompt).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=num_decode, ignore_eos=True)
        events: SimpleQueue[tuple[float, Event]] = SimpleQueue()
        llm.engine.submit(
            Request(prompt_ids=ids, params=params),
            lambda event, put=events.put: put((time.perf_counter(), event)),
        )
        times = []
        while not isinstance((found := events.get())[1], Finished):
            if isinstance(found[1], TokenEvent):
                times.append(found[0])
        if turn:  # the first warms up
            prompts.append(num_prompt / found[1].usage.prompt_s)
            steps += np.diff(times).tolist()
    return max(prompts), 1 / float(np.quantile(steps, QUIET))


if __name__ == "__main__":
    main()

"""Predictions in README.md and docs/cluster.md, by `hybridmoe plan`; run it to rewrite them.

On a CPU with AVX-512 and its VBMI, whatever this machine has.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner
from page_blocks import Block, rewrite, table

from hybridmoe.cli.app import cli
from hybridmoe.hardware import isa

__all__ = ["BLOCKS"]

ROOT = Path(__file__).parents[2]
PROMPT_TOKENS = 1024
MODEL = ("plan", "kimi-k2", "--ctx", "32768", "--slots", "1")

DESKTOP = "--dram-gbs 80 --tops 20 --disk-gbs 7"
SERVER = "--dram-gbs 380 --tops 30 --ram 740GiB"
MACHINES = (  # and the file, and what `plan` is given
    ("64 GB desktop, NVMe disk", "Q2_K, 315 GiB", f"{DESKTOP} --ram 56GiB --device cpu"),
    ("128 GB desktop, NVMe disk", "Q2_K", f"{DESKTOP} --ram 120GiB --device cpu"),
    ("the same with an RTX 4090", "Q2_K", f"{DESKTOP} --ram 120GiB --gpu rtx-4090"),
    ("256 GB desktop, NVMe disk, RTX 4090", "Q2_K", f"{DESKTOP} --ram 244GiB --gpu rtx-4090"),
    (
        "512 GB workstation, 8 channels of DDR5, RTX 4090",
        "Q2_K",
        "--dram-gbs 280 --tops 20 --ram 500GiB --gpu rtx-4090",
    ),
    (
        "768 GB server, 12 channels of DDR5, no GPU",
        "Q4_K_M, 578 GiB",
        f"{SERVER} --device cpu",
    ),
    ("the same with an RTX 4090", "Q4_K_M", f"{SERVER} --gpu rtx-4090"),
)

HOSTS = (  # and --hosts, and the quantization
    ("2 desktops", "a:256GiB:80GB/s,b:256GiB:80GB/s", "Q2_K"),
    ("4 desktops", "a:128GiB:80GB/s,b:128GiB:80GB/s,c:128GiB:80GB/s,d:128GiB:80GB/s", "Q2_K"),
    ("4 desktops", "a:256GiB:80GB/s,b:256GiB:80GB/s,c:256GiB:80GB/s,d:256GiB:80GB/s", "Q4_K_M"),
    ("workstation + desktop", "a:512GiB:280GB/s,b:256GiB:80GB/s", "Q4_K_M"),
    ("2 servers", "a:768GiB:380GB/s,b:768GiB:380GB/s", "Q8_0"),
)

SAMPLE = f"--quant Q4_K_M --ram 120GiB {DESKTOP} --device cpu"
SAMPLE_LINES = (  # how those begin that a reader sees
    "verdict", "quant", "Q4_K_M", "Q2_K", "IQ1_S", "tier  part", "RAM   weights", "RAM   KV",
    "RAM   3", "disk  1", "note  Routing",
)  # fmt: skip


def machines() -> str:
    """Write the first table of README.md."""
    rows = []
    for name, file, arguments in MACHINES:
        found = _predicted("--quant", file.partition(",")[0], *arguments.split())
        answer, prompt = (found[step]["tokens_per_s"] for step in ("decode", "prompt"))
        rows.append((name, file, _speed(answer), f"{prompt:.0f} ({PROMPT_TOKENS / prompt:.0f} s)"))
    return table(("machine", "file", "answer", f"prompt of {PROMPT_TOKENS}"), rows)


def hosts() -> str:
    """Write the table of docs/cluster.md."""
    rows = []
    for name, of, quant in HOSTS:
        found = _predicted("--quant", quant, "--hosts", of, "--tops", "20")
        answer, prompt = (found[step]["tokens_per_s"] for step in ("decode", "prompt"))
        rows.append((name, f"`{of}`", quant, _speed(answer), f"{prompt:.0f}"))
    return table(
        ("hosts", "`--hosts`", "file", "answer, tokens/s", "prompt of 1024, tokens/s"), rows
    )


def sample() -> str:
    """Write the plan of README.md: some of its lines."""
    command = [*MODEL, *SAMPLE.split()]
    kept = [""]
    for line in _printed(command).splitlines():
        if line.startswith(SAMPLE_LINES) or (not line and kept[-1]):
            kept.append(line)
    text = "\n".join(kept[1:])
    return f"```console\n$ hybridmoe {' '.join(command)}\n{text}\n```\n"


def _predicted(*arguments: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(_printed([*MODEL, *arguments, "--json"]))
    return found


def _printed(command: list[str]) -> str:
    with patch.multiple(isa, active=lambda: "avx512", has_vbmi=lambda: True):
        return CliRunner().invoke(cli, command, catch_exceptions=False).output


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"


_SOURCE = "tests/support/plan_docs.py"
BLOCKS = (
    Block(ROOT / "README.md", f"{_SOURCE}: machines", machines),
    Block(ROOT / "README.md", f"{_SOURCE}: sample", sample),
    Block(ROOT / "docs" / "cluster.md", f"{_SOURCE}: hosts", hosts),
)

if __name__ == "__main__":
    rewrite(BLOCKS)

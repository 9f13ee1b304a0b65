"""`hybridmoe plan --hosts`: shares, speed and the host that bounds, or one line of refusal."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from hybridmoe.cli.app import cli
from hybridmoe.hardware import isa

TWO = "a:512GiB:300GB/s,b:256GiB:80GB/s"


@pytest.fixture(autouse=True)
def avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "active", lambda: "avx512")


def plan(*arguments: str) -> dict[str, Any]:
    command = ["plan", "kimi-k2", "--tops", "20", "--json", *arguments]
    found: dict[str, Any] = json.loads(
        CliRunner().invoke(cli, command, catch_exceptions=False).output
    )
    return found


def test_shares_speed_and_the_host_that_bounds() -> None:
    found = plan("--hosts", TWO)
    a, b = found["hosts"]
    assert a["experts"][1] == b["experts"][0] and b["experts"][1] == 384
    assert a["in_ram"] == b["in_ram"] == 1.0
    # RAM holds all: shares are by rate, 300 to 80.
    assert b["experts"][1] - b["experts"][0] == pytest.approx(384 * 80 / 380, abs=1)
    assert found["disk_bytes"] == 0 and "all experts fit into RAM" in found["verdict"]
    assert found["decode"]["tokens_per_s"] == pytest.approx(1 / found["decode"]["total_s"])
    far = plan("--hosts", TWO, "--link-us", "3000")
    # 60 layers, of which nearly all have one of a token's 8 experts at b, wait 6 ms.
    assert far["decode"]["total_s"] - found["decode"]["total_s"] > 0.8 * 60 * 0.005
    assert far["decode"]["waited_for"][1] > far["decode"]["waited_for"][0]


def test_text_names_all() -> None:
    command = ["plan", "kimi-k2", "--tops", "20", "--hosts", TWO, "--link-us", "30"]
    text = CliRunner().invoke(cli, command, catch_exceptions=False).output
    for part in ("runs on a + b", "0-302", "303-383", "waits for", "waiting for other hosts"):
        assert part in text, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "a:64GiB:80"], "--hosts: 1 given, expected 2 to 8"),
        (["--hosts", "a:64GiB:80,b"], "--hosts 'b': expected NAME:RAM:RATE, as a:256GiB:200GB/s"),
        (
            ["--hosts", "a:64:80,b:1GiB:8"],
            "--hosts 'a:64:80': RAM '64': expected a size such as 12GiB",
        ),
        (["--hosts", "a:64GiB:80,a:64GiB:80"], "two hosts have the same name"),
        (["--hosts", "a:64GiB:0,b:64GiB:80"], "--hosts 'a:64GiB:0': expected"),
        (["--hosts", "a:2GiB:80,b:900GiB:80"], "host a, rank 0:"),
        (["--hosts", "a:128GiB:80,b:128GiB:80"], "GiB too little: --disk-gbs predicts"),
        (["--hosts", TWO, "--ram", "64GiB"], "--ram is of one machine, and --hosts of several"),
        (["--hosts", TWO, "--gpu", "rtx-4090"], "--gpu is of one machine"),
        (["--hosts", TWO, "--device", "cuda"], "--device cuda: --hosts plans for CPUs alone"),
        (["--hosts", TWO, "--prompt-tokens", "99999"], "are more than the context"),
        (["--link-us", "30"], "--link-us is of --hosts, which is missing"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["plan", "kimi-k2", "--tops", "20", *arguments])
    assert message in str(done.exception) and "\n" not in str(done.exception)


def test_experts_beyond_all_ram_are_read_from_disk() -> None:
    hosts = ["--hosts", "a:256GiB:80,b:256GiB:80"]
    found = plan(*hosts, "--disk-gbs", "7")
    assert found["disk_bytes"] > 0 and "stay on disk" in found["verdict"]
    assert plan(*hosts, "--quant", "Q2_K")["disk_bytes"] == 0

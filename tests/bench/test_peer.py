"""The peer of the hybrid benchmark: its command, its output, and what goes wrong."""

import sys
from pathlib import Path

import click
import pytest

from bench._peer import PeerSpeed, best_of, measure_peer, parse_command, parse_speeds

# As llama.cpp's driver printed it on an H100.
OUTPUT = """\
dev 0 CUDA0 NVIDIA H100 80GB HBM3
dev 1 CPU Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
defaults ngl -1 mmap 0 extra 1
defaults ctx 512 batch 2048 ub 512 thr 4 beta -1 -1
loaded in 3.4 s
llamacpp hybrid ub 2048 extra 0 prompt 512: 1268.3 tok/s, decode after 47.92 tok/s (median of 32)
llamacpp hybrid ub 2048 extra 0 prompt 2048: 4099.0 tok/s, decode after 44.10 tok/s (median of 32)
llamacpp hybrid ub 2048 extra 0 prompt 8192: 3755.2 tok/s, decode after 41.50 tok/s (median of 32)
"""
LENGTHS = (512, 2048, 8192)

# Prints its arguments, and speeds that tell the settings apart.
PROGRAM = """\
import sys
open(sys.argv[1], "a").write(" ".join(sys.argv[2:]) + chr(10))
model, mode, threads, prompts, decoded, repack, micro_batch = sys.argv[2:]
for n in prompts.split(","):
    print(f"x {mode} prompt {n}: {micro_batch}.5 tok/s, decode after {threads}.25 tok/s (median)")
"""


def test_speeds_are_read_from_recorded_output() -> None:
    speeds = parse_speeds(OUTPUT, 16, 2048, LENGTHS)
    assert speeds[0] == PeerSpeed(16, 2048, 512, 1268.3, 47.92)
    assert [speed.prompt for speed in speeds] == [1268.3, 4099.0, 3755.2]
    assert best_of(speeds) == ({512: 1268.3, 2048: 4099.0, 8192: 3755.2}, 47.92)


def test_the_best_setting_counts_for_each_figure() -> None:
    speeds = [PeerSpeed(16, 2048, 512, 1268, 47.9), PeerSpeed(15, 512, 512, 1491, 55.8)]
    speeds += [PeerSpeed(16, 2048, 2048, 4099, 44), PeerSpeed(15, 512, 2048, 3000, 43)]
    assert best_of(speeds) == ({512: 1491, 2048: 4099}, 55.8)


def test_a_prompt_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(click.ClickException, match=r"no speed of a prompt of 4096.*prompt 8192"):
        parse_speeds(OUTPUT, 16, 2048, (512, 4096))
    with pytest.raises(click.ClickException, match="its last line: load failed"):
        parse_speeds("dev 0\nload failed\n", 16, 2048, LENGTHS)


def test_the_program_gets_model_settings_and_lengths(tmp_path: Path) -> None:
    program, calls = tmp_path / "peer.py", tmp_path / "calls"
    program.write_text(PROGRAM)
    command = parse_command(f"{sys.executable} '{program}' '{calls}'")
    speeds = measure_peer(
        command, Path("k2.gguf"), num_threads=16, prompts=(512, 2048), num_decode=32
    )
    assert calls.read_text().splitlines() == [
        "k2.gguf hybrid 16 512,2048 32 0 2048",
        "k2.gguf hybrid 15 512,2048 32 0 512",
    ]
    assert [PeerSpeed(**speed) for speed in speeds] == [
        PeerSpeed(16, 2048, 512, 2048.5, 16.25),
        PeerSpeed(16, 2048, 2048, 2048.5, 16.25),
        PeerSpeed(15, 512, 512, 512.5, 15.25),
        PeerSpeed(15, 512, 2048, 512.5, 15.25),
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nonexistent/peer", "the peer cannot run: .*No such file"),
        ("sh -c 'echo no card >&2; exit 3'", "the peer ended with 3: no card"),
        ("sh -c 'echo hello'", "no speed of a prompt of 512; its last line: hello"),
    ],
)
def test_a_peer_that_fails_is_one_line(command: str, message: str) -> None:
    with pytest.raises(click.ClickException, match=message) as caught:
        measure_peer(parse_command(command), Path("m"), num_threads=2, prompts=(512,), num_decode=1)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("command", ["", "peer 'without end"])
def test_a_command_is_split_as_a_shell_does(command: str) -> None:
    with pytest.raises(click.ClickException, match="--peer"):
        parse_command(command)

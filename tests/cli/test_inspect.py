"""`hybridmoe inspect`: numbers equal those worked out by hand; every kind of file prints."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Q
from raw_gguf import RawFile, RawTensor, packed, text_key
from tiny_gguf import split_file, write_tiny

from hybridmoe.cli.inspect import inspect_command
from hybridmoe.errors import GGUFError
from hybridmoe.placement.options import LoadOptions

SMALL = {
    "layers": 2, "dense_layers": 1, "hidden": 64, "heads": 2, "q_lora": None, "kv_lora": 32,
    "rope": 16, "nope": 32, "v": 32, "dense_width": 128, "experts": 8, "top_k": 3,
    "expert_width": 32, "shared": 1,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_tiny(path, type={"default": Q.Q8_0, "ffn_up_exps": Q.Q4_0}, **SMALL)
    return path


def inspect(*arguments: object) -> str:
    result = CliRunner().invoke(inspect_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_holds_the_numbers_worked_out_by_hand(model: Path) -> None:
    summary = json.loads(inspect(model, "--json"))
    tokens = summary["tokenizer"]["num_tokens"]
    per_layer = 2 * 48 * 64 + (32 + 16) * 64 + 2 * 32 * 32 + 2 * 32 * 32 + 64 * 64
    experts = 8 * 32 * 64  # weights of one of gate, up, down
    q8, q4 = 34 / 32, 18 / 32
    parts = summary["parts"]
    assert parts["embedding"] == {
        "num_params": tokens * 64, "num_bytes": tokens * 68, "active_params": 64, "token_bytes": 68,
    }  # fmt: skip
    assert parts["attention"]["num_params"] == 2 * per_layer
    assert parts["attention"]["token_bytes"] == 2 * per_layer * q8
    assert parts["routed experts"]["num_params"] == 3 * experts
    assert parts["routed experts"]["num_bytes"] == experts * (2 * q8 + q4)
    assert parts["routed experts"]["active_params"] == 3 * experts * 3 // 8
    assert parts["routed experts"]["token_bytes"] == experts * (2 * q8 + q4) * 3 / 8
    assert parts["shared expert"]["token_bytes"] == 3 * 32 * 64 * q8
    assert parts["dense ffn"]["token_bytes"] == 3 * 128 * 64 * q8
    assert parts["router"]["token_bytes"] == (8 * 64 + 8) * 4
    assert parts["norm"]["token_bytes"] == (2 * (64 + 64 + 32) + 64) * 4
    assert parts["output"]["token_bytes"] == tokens * 68
    assert summary["total"]["token_bytes"] == sum(p["token_bytes"] for p in parts.values())
    assert summary["kv_bytes_per_token"] == 2 * (32 + 16) * 2 and summary["kv_type"] == "f16"
    assert LoadOptions().kv_type == "f16"  # the one that `load` uses by default
    assert summary["num_bytes"] == model.stat().st_size
    assert summary["is_supported"] and summary["unsupported_reason"] is None
    assert summary["config"]["top_k"] == 3
    assert summary["has_chat_template"] is False
    assert "tensors" not in summary


def test_plain_text_is_aligned_and_complete(model: Path) -> None:
    lines = inspect(model).splitlines()
    facts = dict(line.split("  ", 1) for line in lines[: lines.index("")])
    facts = {label: value.strip() for label, value in facts.items()}
    assert facts["model"] == "deepseek2, tiny"
    assert facts["experts"] == "3 of 8 per token, 1 shared, width 32"
    assert facts["rope scaling"].startswith("YaRN x 32 over 4096 tokens, beta 1 / 1")
    assert facts["KV cache per token"] == "192 bytes (f16)"
    assert facts["tokenizer"] == "gpt2, kimi-k2, 384 tokens"
    assert facts["chat template"] == "none"
    assert not any(line.endswith(" ") or "\x1b" in line for line in lines)


def test_tensors_are_listed_on_request(model: Path) -> None:
    assert "blk.1.ffn_up_exps.weight" not in inspect(model)
    row = next(line for line in inspect(model, "--tensors").splitlines() if "ffn_up_exps" in line)
    assert " ".join(row.split()) == "blk.1.ffn_up_exps.weight 8 x 32 x 64 Q4_0 9.00 KiB 1"
    tensors = json.loads(inspect(model, "--json", "--tensors"))["tensors"]
    assert {"name", "type", "shape", "num_bytes", "file", "offset"} == tensors[0].keys()


def test_a_split_file_names_its_parts(model: Path) -> None:
    first, *_ = split_file(model, 3)
    assert "small-00001-of-00003.gguf (3 parts, " in inspect(first)
    assert len(json.loads(inspect(first, "--json"))["files"]) == 3


def test_another_architecture_shows_what_is_known(tmp_path: Path) -> None:
    tensors, data = packed([RawTensor("token_embd.weight", [64, 4], Q.Q8_0)])
    keys = [text_key("general.architecture", "llama"), text_key("general.name", "\x1b[31mred[b]")]
    path = RawFile(keys, tensors, data).write(tmp_path / "x.gguf")
    text = inspect(path)
    assert "llama, \\x1b[31mred[b]" in text
    assert "not supported    general.architecture is 'llama'" in text
    summary = json.loads(inspect(path, "--json"))
    assert not summary["is_supported"] and summary["config"] is None
    assert summary["total"]["num_bytes"] == 272


def test_an_empty_gguf_prints(tmp_path: Path) -> None:
    path = RawFile().write(tmp_path / "x.gguf")
    assert "unknown architecture" in inspect(path)


def test_a_bad_file_raises_the_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"^none\.gguf: no such file"):
        inspect(tmp_path / "none.gguf")


def test_a_terminal_gets_tables(model: Path) -> None:
    master, slave = pty.openpty()
    script = "from hybridmoe.cli.inspect import inspect_command; inspect_command()"
    command = [sys.executable, "-c", script, str(model)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        output = b""
        while chunk := _read(master):
            output += chunk
    os.close(master)
    assert process.returncode == 0
    assert b"\x1b[" in output and b"routed experts" in output and b"By type" in output


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux: the other side is closed
        return b""

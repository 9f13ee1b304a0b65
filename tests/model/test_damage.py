"""NaN and infinity: no response is made of them, and the damaged tensor is named."""

import json
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from engine_run import Running, request, run
from gguf import GGMLQuantizationType as Q
from live_server import LiveServer, live_server
from tiny_gguf import write_tiny
from waiting import HANG_S

import hybridmoe
from hybridmoe.cli.app import main
from hybridmoe.cli.inspect import inspect_command
from hybridmoe.errors import DiskError, GGUFError, HybridMoeError, NonFiniteError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.finite import find_damage

NAN, INFINITY = float("nan"), float("inf")
SIZES = {
    "layers": 3, "hidden": 64, "kv_lora": 32, "q_lora": 32, "experts": 4, "top_k": 2, "heads": 2,
    "expert_width": 32, "dense_width": 64, "nope": 16, "rope": 16, "v": 16,
}  # fmt: skip
BAD_TOKEN = 5


def write(path: Path, type: Q = Q.Q8_0, **options: Any) -> Path:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_tiny(path, type=type, chat_template=template, **{**SIZES, **options})
    return path


def damage(path: Path, name: str, value: float, row: int = 0) -> None:
    """Overwrite the first scale of a row, or its first number."""
    with GGUFFile.open(path) as file:
        tensor = file.tensors[name]
        rows = tensor.num_elements // tensor.shape[-1]
        offset = tensor.offset + row * (tensor.num_bytes // rows)
        form = "<f" if tensor.type == Q.F32 else "<e"
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(struct.pack(form, value))


@pytest.mark.parametrize("type", [Q.F32, Q.Q8_0], ids=str)
@pytest.mark.parametrize(
    ("name", "where", "row"),
    [
        ("token_embd.weight", "from layer 0 on", "row 5"),
        ("blk.0.attn_q_b.weight", "from layer 0 on", "row 5"),
        ("blk.0.ffn_up.weight", "from layer 1 on", "row 5"),
        ("blk.1.ffn_gate_inp.weight", "from layer 2 on", "row 0"),
        ("blk.1.ffn_down_exps.weight", "from layer 2 on", "expert 0, row 5"),
        ("blk.2.ffn_down_shexp.weight", "after layer 2", "row 5"),
        ("output.weight", "in the logits", "row 5"),
    ],
)
def test_nan_results_are_an_error_that_names_layer_and_tensor(
    tmp_path: Path, type: Q, name: str, where: str, row: str
) -> None:
    path = write(tmp_path / "bad.gguf", type)
    damage(path, name, NAN, 0 if "gate_inp" in name else 5)
    with hybridmoe.load(path, num_threads=1, context_tokens=64, device="cpu") as llm:
        ids = [BAD_TOKEN, *range(100, 130)]
        end = run(llm.engine, request(ids, 4, temperature=0.0))[0].end
        assert end.reason == "error" and end.error is not None and not end.is_refusal
        assert end.usage.generated_tokens == 0
        assert end.error.startswith(f"bad.gguf: results are NaN or infinite {where}"), end.error
        assert f"damaged: {name} (" in end.error and f"): {row} holds" in end.error, end.error
        with pytest.raises(NonFiniteError, match=name):
            llm.logits(ids)


@pytest.mark.parametrize("name", ["blk.1.attn_norm.weight", "blk.1.exp_probs_b.bias"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_a_bad_vector_is_refused_when_the_file_is_loaded(
    tmp_path: Path, name: str, value: float
) -> None:
    path = write(tmp_path / "bad.gguf")
    damage(path, name, value)
    with pytest.raises(GGUFError, match=rf"bad\.gguf: tensor {name} holds NaN or infinity"):
        hybridmoe.load(path, device="cpu")


def test_a_failed_request_does_not_affect_others(tmp_path: Path) -> None:
    """Neither those of the same steps, nor through the prefix cache, nor through reused pages."""
    path = write(tmp_path / "bad.gguf")
    greedy: Any = {"temperature": 0.0, "logit_bias": {BAD_TOKEN: -INFINITY}}
    sound = [request([i, *range(100, 190)], 20, **greedy) for i in (10, 11)]
    with hybridmoe.load(path, context_tokens=256, device="cpu") as llm:
        expected = [run(llm.engine, one)[0].ids for one in sound]
    damage(path, "token_embd.weight", NAN, BAD_TOKEN)
    with hybridmoe.load(path, context_tokens=256, kv_tokens=256, device="cpu") as llm:
        bad = [*range(100, 180), BAD_TOKEN, *range(100, 180)]
        for _ in range(2):
            answers = run(llm.engine, request(bad, 20, **greedy), *sound)
            assert answers[0].end.reason == "error"
            assert [answer.ids for answer in answers[1:]] == expected
        prefix = run(llm.engine, request([*bad, 7], 1, **greedy))[0]
        assert prefix.end.reason == "error" and prefix.end.usage.cached_tokens <= 80


def test_a_long_prompt_ends_with_its_damaged_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf", context=4096)
    damage(path, "token_embd.weight", NAN, BAD_TOKEN)
    with hybridmoe.load(path, device="cpu") as llm:
        answer = Running(llm.engine, request([BAD_TOKEN, *[9] * 3000], 4)).wait()
        assert answer.end.reason == "error" and llm.engine.stats().steps == 1


@pytest.mark.parametrize("sampling", [[], ["--temperature", "0"], ["--temperature", "1"]])
def test_generate_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sampling: list[str]
) -> None:
    path = write(tmp_path / "bad.gguf")
    damage(path, "output.weight", NAN)
    arguments = ["generate", str(path), "-p", "Hello", "--max-tokens", "4", *sampling]
    assert main([*arguments, "--device", "cpu"]) == 1
    out, err = capfd.readouterr()
    assert out.strip() == ""
    assert err.count("\n") == 1 and "output.weight" in err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = write(tmp_path_factory.mktemp("damage") / "bad.gguf")
    damage(path, "output.weight", NAN)
    with hybridmoe.load(path, context_tokens=64, device="cpu") as llm, live_server(llm) as server:
        yield server


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1},
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_object"}},
        {"stream": True},
        {"stream": True, "logprobs": True},
    ],
    ids=str,
)
def test_the_endpoint_reports_it_in_one_line(
    server: LiveServer, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    with caplog.at_level(logging.WARNING):
        reply = httpx2.post(
            f"{server.url}/v1/chat/completions", json=body | options, timeout=HANG_S
        )
    if options.get("stream"):
        events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
        error = json.loads(events[-1])["error"]
        assert not any(
            choice["delta"].get("content")
            for event in events[:-1]
            for choice in json.loads(event)["choices"]
        )
    else:
        assert reply.status_code == 500
        error = reply.json()["error"]
    assert error["type"] == "server_error" and "output.weight" in error["message"]
    assert "\n" not in error["message"]
    assert not any(record.exc_info for record in caplog.records)


def test_check_names_every_damaged_matrix(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf")
    sound = CliRunner().invoke(inspect_command, [str(path), "--check"])
    assert sound.exit_code == 0 and "all numbers and scales are finite" in sound.output
    damage(path, "blk.1.ffn_up_exps.weight", INFINITY, 32 + 7)
    damage(path, "blk.1.ffn_up_exps.weight", NAN, 3 * 32)
    damage(path, "output_norm.weight", NAN)
    for options, exit_code in (([], 1), (["--json"], 1)):
        result = CliRunner().invoke(inspect_command, [str(path), "--check", *options])
        assert result.exit_code == exit_code
        assert isinstance(result.exception, GGUFError) and "2 of " in str(result.exception)
    said = json.loads(result.stdout)
    assert {(d["tensor"], d["matrix"], d["row"]) for d in said["damage"]} == {
        ("blk.1.ffn_up_exps.weight", 1, 7),
        ("blk.1.ffn_up_exps.weight", 3, 0),
        ("output_norm.weight", None, None),
    }


@pytest.mark.parametrize(
    "kind", [Q.F16, Q.BF16, Q.Q4_K, Q.IQ2_XS, Q.TQ1_0, QuantType.IQ4_KS], ids=lambda q: q.name
)
def test_check_reads_scales_wherever_they_lie(tmp_path: Path, kind: Q) -> None:
    path = write(tmp_path / "bad.gguf", kind, hidden=256, expert_width=256, dense_width=256)
    name = "blk.1.ffn_down_exps.weight"
    with GGUFFile.open(path) as file:
        tensor = file.tensors[name]
        assert tensor.type == kind and not list(find_damage(file, tensor))
        row_bytes = tensor.num_bytes // (4 * 256)
    with path.open("r+b") as raw:  # all bits set: NaN in any 16 or 32 of them
        raw.seek(tensor.offset + (256 + 9) * row_bytes)
        raw.write(b"\xff" * row_bytes)
    with GGUFFile.open(path) as file:
        found = list(find_damage(file, file.tensors[name]))
    assert [(d.matrix, d.row) for d in found] == [(1, 9)]


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf")
    with GGUFFile.open(path) as file:
        last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
        os.truncate(path, last.offset + last.num_bytes // 2)
        with pytest.raises(DiskError, match=last.name):
            list(find_damage(file, last))


def test_a_type_without_a_kernel_names_file_and_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.gguf", Q.F32)
    raw = path.read_bytes()
    name = b"blk.1.ffn_down_exps.weight"
    at = raw.index(name) + len(name) + 4 + 3 * 8  # after the number of dimensions and them
    path.write_bytes(raw[:at] + struct.pack("<I", Q.I32) + raw[at + 4 :])
    with pytest.raises(
        HybridMoeError, match=rf"odd\.gguf: tensor {name.decode()} \(I32\): .*kernel"
    ):
        hybridmoe.load(path, device="cpu")


@pytest.mark.parametrize("value", ["hot", "x" * 5000, -1.0, True])
def test_unusable_recommended_sampling_is_refused_at_load(tmp_path: Path, value: object) -> None:
    path = tmp_path / "odd.gguf"
    write_tiny(path, metadata={"general.sampling.temp": value}, **SIZES)
    with pytest.raises(GGUFError, match=r"odd\.gguf: general\.sampling\.temp: ") as refusal:
        hybridmoe.load(path, device="cpu")
    assert len(str(refusal.value)) < 200

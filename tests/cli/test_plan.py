"""`hybridmoe plan`: headers are enough, every figure is there, and what is wrong is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Q
from k2_header import write_k2
from tiny_gguf import write_tiny

from hybridmoe.cli import plan_verdict
from hybridmoe.cli.app import main
from hybridmoe.cli.plan import plan_command
from hybridmoe.cli.plan_run import verdict_of
from hybridmoe.demo import demo_path
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.limits import Limits, Rate

GIVEN = ("--dram-gbs", 200, "--tops", 10, "--disk-gbs", 7)
STEPS = ("prompt", "decode")


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first part of Kimi K2 in Q4_K_M, its header alone."""
    return write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf", first_layers=3)


def plan(*arguments: object) -> str:
    result = CliRunner().invoke(plan_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def plan_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(*arguments, "--json"))
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) != 0
    said = capsys.readouterr().err
    assert said.startswith("hybridmoe: error: ") and said.count("\n") == 1
    return said


def test_the_first_part_of_kimi_k2_is_planned(k2: Path) -> None:
    text = plan(k2, *GIVEN, "--ram", "128GiB")
    for words in (
        "Kimi K2, 578.", "1 of 13 parts", "60 layers x 384, 8 for a token of a layer, 480 in all",
        "x a token's", "200.0 GB/s (given)", "7.00 GB/s (given)", "disk", "tokens/s",
        "Estimate: parts 2-13 are missing", "Routing is taken to be uniform",
    ):  # fmt: skip
        assert words in text, words


def test_json_holds_the_same_plan(k2: Path) -> None:
    found = plan_json(k2, *GIVEN, "--ram", "128GiB")
    facts = found["plan"]
    ram = facts["tiers"]["RAM"]
    assert facts["working_set"] == 480 and facts["slot_bytes"] == 28557312
    assert ram["budget_bytes"] == 128 << 30
    assert facts["num_vram_slots"] == 0
    assert facts["num_ram_experts"] == ram["num_experts"] == facts["disk_cache"]["num_slots"]
    assert ram["num_experts"] + facts["num_disk_experts"] == 60 * 384
    assert ram["working_set_ratio"] == ram["num_experts"] / 480
    assert facts["kv_tokens"] == 64 * facts["kv_pages"] >= facts["context_tokens"] == 131072
    assert facts["kv_bytes"] == facts["kv_tokens"] * 61 * 576 * 2
    assert facts["step_tokens"] == 8192 and facts["prompt_experts_on"] == "cpu"
    assert found["hits"]["ram"] == ram["num_experts"] / (60 * 384)
    assert found["decode"]["tokens_per_s"] == pytest.approx(
        1 / sum(found["decode"]["seconds"].values())
    )
    assert found["rates"]["origins"] == {"DRAM": "given", "products": "given", "disk": "given"}
    assert found["num_estimated_tensors"] > 900 and found["missing_parts"] == list(range(2, 14))


def test_options_change_what_they_name(k2: Path) -> None:
    base = plan_json(k2, *GIVEN, "--ram", "256G")
    smaller = plan_json(k2, *GIVEN, "--ram", "256G", "--quant", "q2_k")
    assert smaller["plan"]["total_bytes"] < 0.65 * base["plan"]["total_bytes"]
    assert smaller["decode"]["tokens_per_s"] > base["decode"]["tokens_per_s"]
    better = plan_json(k2, *GIVEN, "--ram", "256G", "--hit-rate", 0.9)
    assert better["hits"] == {"vram": 0, "ram": 0.9, "disk": pytest.approx(0.1), "given": True}
    assert better["decode"]["tokens_per_s"] > base["decode"]["tokens_per_s"]
    one = plan_json(k2, *GIVEN, "--ram", "256G", "--slots", 1)["plan"]
    assert one["kv_tokens"] == 131072 < base["plan"]["kv_tokens"]
    assert one["num_ram_experts"] > base["plan"]["num_ram_experts"]
    int8 = plan_json(k2, *GIVEN, "--ram", "256G", "--slots", 1, "--kv-type", "int8")["plan"]
    assert int8["kv_bytes"] < 0.6 * one["kv_bytes"]
    assert int8["num_ram_experts"] > one["num_ram_experts"]
    given = plan_json(k2, *GIVEN, "--ram", "256G", "--expert-ram", "64G", "--expert-prefetch", 2)
    cache = given["plan"]["disk_cache"]
    assert 63.9 * 2**30 < cache["num_bytes"] <= 64 * 2**30 and cache["num_ahead"] == 2
    shorter = plan_json(k2, *GIVEN, "--ram", "256GB", "--ctx", 4096)
    assert shorter["plan"]["tiers"]["RAM"]["budget_bytes"] == 256 * 10**9
    assert shorter["plan"]["context_tokens"] == 4096
    slower = plan_json(k2, "--dram-gbs", 50, "--tops", 10, "--ram", "1T")
    assert slower["rates"]["dram"] == 50e9 and slower["plan"]["num_disk_experts"] == 0


def test_what_a_larger_machine_would_gain_is_what_its_plan_predicts(k2: Path) -> None:
    given = (*GIVEN, "--device", "cpu", "--ctx", "32768")
    found = plan_json(k2, *given, "--ram", "128GiB")
    faster_disk = [8 if option == 7 else option for option in given]
    larger = (
        plan_json(k2, *given, "--ram", "129GiB"),
        plan_json(k2, *faster_disk, "--ram", "128GiB"),
    )
    assert found["gains"] == [
        {
            "more": more,
            "prompt_tokens_per_s": other["prompt"]["tokens_per_s"],
            "decode_tokens_per_s": other["decode"]["tokens_per_s"],
        }
        for more, other in zip(("1 GiB of RAM", "1 GB/s of disk"), larger, strict=True)
    ]
    text = plan(k2, *given, "--ram", "128GiB")
    before, after = (run["decode"]["tokens_per_s"] for run in (found, larger[1]))
    assert f"{after - before:+.2g} ({100 * (after / before - 1):+.1f} %)" in text
    assert "gains" not in text and "one more" in text
    assert "one more" not in plan(k2, *given, "--ram", "700GiB")


def test_a_traces_curve_says_what_is_found(k2: Path, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({"slots": [480, 23040], "hit_rate": [0.5, 1.0]}))
    found = plan_json(k2, *GIVEN, "--ram", "128G", "--hit-curve", path)
    slots = found["plan"]["tiers"]["RAM"]["num_experts"]
    assert found["hits"]["ram"] == pytest.approx(0.5 + 0.5 * (slots - 480) / (23040 - 480))


def test_a_gpu_by_name_takes_what_every_token_uses(k2: Path) -> None:
    found = plan_json(k2, *GIVEN, "--ram", "700G", "--gpu", "rtx-4090")
    assert found["plan"]["tiers"]["VRAM"]["budget_bytes"] == 24 << 30
    assert "weights that every token uses" in found["plan"]["tiers"]["VRAM"]["parts"]
    assert found["hits"]["vram"] > 0 and found["decode"]["read_bytes"]["VRAM"] > 0
    by_hand = ("--vram", "24GiB", "--vram-gbs", 1008, "--gpu-tflops", 165, "--pcie-gbs", 31.5)
    same = plan_json(k2, *GIVEN, "--ram", "700G", *by_hand)
    assert same["decode"] == found["decode"] and same["prompt"] == found["prompt"]
    text = plan(k2, *GIVEN, "--ram", "700G", "--gpu", "rtx-4090")
    assert "assumed from its data sheet" in text and "PCIe 27 GB/s" in text


def test_several_gpus_by_name(k2: Path) -> None:
    base = (*GIVEN, "--ram", "700G")
    found = plan_json(k2, *base, "--gpu", "rtx-4090,RTX 3060")
    first, second = found["plan"]["gpus"]
    assert [first["budget_bytes"], second["budget_bytes"]] == [24 << 30, 12 << 30]
    assert first["num_layers"] + second["num_layers"] == 61
    assert found["plan"]["tiers"]["VRAM"]["budget_bytes"] == 36 << 30
    assert len(found["gpu_rates"]) == 2 and found["decode"]["seconds"]["between GPUs"] > 0
    for text in ("2x rtx-4090", "2xrtx-4090", "rtx-4090,rtx-4090"):
        two = plan_json(k2, *base, "--gpu", text)
        assert [gpu["name"] for gpu in two["plan"]["gpus"]] == ["rtx-4090", "rtx-4090"]
    one = plan_json(k2, *base, "--gpu", "rtx-4090")
    assert two["plan"]["num_vram_slots"] > one["plan"]["num_vram_slots"]
    assert two["decode"]["tokens_per_s"] > one["decode"]["tokens_per_s"]
    assert one["plan"]["gpus"] == [] and "between GPUs" not in one["decode"]["seconds"]
    smaller = plan_json(k2, *base, "--gpu", "2x rtx-4090", "--vram", "20GiB,10GiB")
    assert [gpu["budget_bytes"] for gpu in smaller["plan"]["gpus"]] == [20 << 30, 10 << 30]
    text = plan(k2, *base, "--gpu", "rtx-4090,rtx-3060")
    for words in (
        f"rtx-4090, layers 0-{first['num_layers'] - 1}",
        f"rtx-3060, layers {second['first_layer']}-60",
        "between GPUs", "706 GB/s", "252 GB/s",
    ):  # fmt: skip
        assert words in text, words


def test_fewer_gpus_are_named_where_they_are_predicted_faster(k2: Path) -> None:
    base = (*GIVEN, "--ram", "700G")
    one, both = (plan_json(k2, *base, "--gpu", g) for g in ("rtx-4090", "rtx-4090,rtx-3060"))
    (line,) = (note for note in both["notes"] if "Fewer GPUs" in note)
    prompt, decode = ([f[what]["tokens_per_s"] for f in (one, both)] for what in STEPS)
    assert line == (
        f"Fewer GPUs are predicted to be faster: cuda:0 (rtx-4090) alone, prompts {prompt[0]:.0f}"
        f" tokens/s instead of {prompt[1]:.0f}, decoding {decode[0]:.1f}"
        f" instead of {decode[1]:.1f}."
    )
    assert line in plan(k2, *base, "--gpu", "rtx-4090,rtx-3060")
    for silent in (("2x rtx-4090",), ("rtx-4090,rtx-3060", "--vram-hit-rate", "0.5")):
        assert "Fewer GPUs" not in plan(k2, *base, "--gpu", *silent)


def test_this_machines_gpu_is_planned_for_where_none_is_named(
    k2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = NoGpu("the CPU was asked for", is_silent=True)
    here = CudaGpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30, 23 << 30)
    monkeypatch.setattr(
        "hybridmoe.cli.plan_rates.choose_gpus", lambda wanted: none if wanted == "cpu" else (here,)
    )
    found = plan_json(k2, *GIVEN, "--ram", "700G")
    assert found["plan"]["tiers"]["VRAM"]["budget_bytes"] == 23 << 30
    assert any("this machine's NVIDIA GeForce RTX 4090" in said for said in found["notes"])
    other = plan_json(k2, *GIVEN, "--ram", "700G", "--gpu", "rtx-5090")
    assert other["plan"]["tiers"]["VRAM"]["budget_bytes"] == 32 << 30
    assert "VRAM" not in plan_json(k2, *GIVEN, "--ram", "700G", "--device", "cpu")["plan"]["tiers"]
    unknown = here._replace(name="NVIDIA GeForce RTX 4090 Laptop GPU")
    monkeypatch.setattr("hybridmoe.cli.plan_rates.choose_gpus", lambda wanted: (unknown,))
    found = plan_json(k2, *GIVEN, "--ram", "700G")
    assert (
        "VRAM" not in found["plan"]["tiers"]
        and "data sheet is not known" in found["plan"]["notes"][-1]
    )


def test_tensors_and_experts_go_where_they_are_placed(k2: Path) -> None:
    gpu = (*GIVEN, "--ram", "700G", "--gpu", "rtx-5090", "--ctx", 32768, "--slots", 1)
    base = plan_json(k2, *gpu)
    places = ("--place", "shexp=cpu", "--place", r"blk\.[12]\.ffn_.*_exps=cuda")
    found = plan_json(k2, *gpu, *places, "--place", "nothing=cpu")
    moved = found["plan"]["tiers"]["RAM"]["parts"]["weights pinned to the CPU"]
    parts = found["plan"]["tiers"]["VRAM"]["parts"], base["plan"]["tiers"]["VRAM"]["parts"]
    of_all = [of["weights that every token uses"] for of in parts]
    assert of_all[1] - of_all[0] == moved > 0
    assert found["plan"]["pinned_layers"] == [1, 2]
    assert found["plan"]["notes"] == ["place: 'nothing=cpu' matches no tensor"]
    assert "The experts of layers 1-2 are in VRAM for good: 768 of" in plan(k2, *gpu, *places)
    alone = plan_json(k2, *GIVEN, "--ram", "700G", *places)
    assert alone["plan"]["pinned_layers"] == []
    assert "on the CPU alone, so that vram and place have no" in alone["plan"]["notes"][-1]


def test_the_cost_of_conversations_is_shown_as_it_is_summed(k2: Path) -> None:
    costs = ("--watts", 400, "--price-kwh", 0.25, "--hardware-price", 6000)
    text = plan(k2, *GIVEN, "--ram", "700G", *costs)
    assert "x 400 W = " in text and "kWh, x 0.25 = " in text and "6000 x " in text
    price = plan_json(k2, *GIVEN, "--ram", "700G", *costs)["price"]
    assert price["total"] == price["energy"] + price["hardware"]
    assert price["energy"] == pytest.approx(price["seconds"] * 1000 * 400 / 3.6e6 * 0.25)
    assert plan_json(k2, *GIVEN, "--ram", "700G")["price"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ram", "lots"), "'lots': expected a size such as 12GiB"),
        (("--ram", "64"), "'64': expected a size such as 12GiB"),
        (("--ram", "4G"), "RAM: 17"),
        (("--ram", "12G"), "lower --ctx to "),
        (("--place", "exps=gpu"), "expected REGEX=cpu or REGEX=cuda"),
        (("--gpu", "rtx-4090", "--place", "exps=cuda"), "place fewer layers' experts on cuda"),
        (("--device", "cuda", "--ram", "700G"), "--device cuda: "),
        (("--gpu", "rtx-4090,voodoo"), "'voodoo': known are rtx-4060"),
        (("--gpu", "2x rtx-4090", "--vram", "20G"), "--vram: expected 2 sizes, one for each"),
        (("--gpu", "rtx-4090", "--vram", "9G,9G"), "--vram: expected 1 size, one for each"),
        (("--vram", "9G,lots"), "'lots': expected a size such as 12GiB"),
        (("--gpu", "rtx-4090", "--device", "cpu"), "--gpu: --device cpu uses none"),
        (
            ("--gpu", "2x rtx-4090", "--device", "cuda:1"),
            "--device cuda:1: expected 2, as many GPUs as --gpu and --vram describe",
        ),
        (("--gpu", "62x rtx-4090", "--ram", "1T"), "62 GPUs for a model of 61 layers"),
        (("--gpu", "voodoo"), "'voodoo': known are rtx-4060"),
        (("--vram", "24G"), "--vram without a speed: give --gpu NAME, or --vram-gbs"),
        (("--gpu", "rtx-4060", "--ram", "700G"), "or use --device cpu"),
        (("--quant", "Q9"), "type 'Q9' is unknown"),
        (("--ctx", 999999), "expected 1 to 131072, the model's own context"),
        (("--ctx", 1000), "are more than the context of 1000"),
        (
            ("--gpu", "rtx-4090", "--kv-type", "int8"),
            "--kv-type int8: expected f16 or bf16 on a GPU",
        ),
        (("--defer", 1), "No such option"),
        (("--dram-gbs", "nan"), "'nan' is not a finite number"),
        (("--hit-rate", "nan"), "'nan' is not a finite number"),
        (("--pcie-gbs", "inf"), "'inf' is not a finite number"),
        (("--watts", "nan", "--ram", "700G"), "--watts nan: expected a number"),
        (("--hit-rate", 2), "2.0 is not in the range 0<=x<=1"),
        (("--watts", -1, "--ram", "700G"), "--watts -1: expected a number from 0 on"),
    ],
)
def test_what_is_wrong_is_one_line(
    k2: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: str,
) -> None:
    monkeypatch.setattr("hybridmoe.hardware.gpu.has_driver", lambda: False)
    assert words in refusal(capsys, k2, *GIVEN, *arguments)


def test_a_model_without_experts_is_planned_too(tmp_path: Path) -> None:
    path = tmp_path / "dense.gguf"
    write_tiny(path, layers=2, dense_layers=2, type=Q.Q8_0)
    found = plan_json(path, *GIVEN, "--ram", "4G", "--ctx", 2048)
    assert (
        found["plan"]["working_set"] == 0
        and found["plan"]["tiers"]["RAM"]["working_set_ratio"] is None
    )
    assert found["decode"]["tokens_per_s"] > 0
    assert "tokens/s" in plan(path, *GIVEN, "--ram", "4G", "--ctx", 2048)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refusal(capsys, tmp_path / "none.gguf")


def test_rates_are_measured_where_none_are_given(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, type=Q.Q8_0)
    found = plan_json(path, "--ctx", 2048, "--ram", "4G")
    assert found["rates"]["origins"]["DRAM"] == "measured"
    assert found["rates"]["dram"] > 1e8 and found["rates"]["ops"] > 1e8
    assert "(measured)" in plan(path, "--ctx", 2048, "--ram", "4G", "--tops", 1)


def test_the_verdict_comes_first_and_says_what_the_tables_do(k2: Path) -> None:
    given = (*GIVEN, "--ram", "128GiB", "--ctx", 32768)
    found = plan_json(k2, *given)
    card = plan_json(k2, *given, "--gpu", "4090")
    first = plan(k2, *given).splitlines()[0]
    speeds = [
        f"{run['decode']['tokens_per_s']:.2f} tokens/s, first word of a 1024-token prompt after"
        for run in (found, card)
    ]
    assert first == f"verdict  {found['verdict']}"
    assert first.startswith(f"verdict  runs: {speeds[0]} ")
    assert f"; with one rtx-4090 of 24 GB: {speeds[1]} " in first and " stay on disk" in first
    assert card["verdict"].startswith(f"runs: {speeds[1]}") and "with one" not in card["verdict"]
    assert "with one" not in plan_json(k2, *given, "--device", "cpu")["verdict"]


def test_a_published_model_is_planned_without_a_file() -> None:
    given = (*GIVEN[:4], "--ram", "128GiB")
    text = plan("kimi-k2", "--quant", "Q4_0", *given)
    for words in (
        "Kimi-K2-Instruct Q4_0, 538.", "3.00 GB/s (assumed", "quant, *: this plan", "Q4_0*  ",
        "128.00 GiB here", "1024 GiB", "Sizes are the release's", "32768 tokens;",
    ):  # fmt: skip
        assert words in text, words
    rows = {cells[0]: cells for cells in map(str.split, text.splitlines()) if cells}
    decode = plan_json("kimi-k2", "--quant", "IQ2_XXS", *given)["decode"]["tokens_per_s"]
    assert float(rows["IQ2_XXS"][3]) == pytest.approx(decode, rel=0.01)
    assert float(rows["IQ2_XXS"][-1]) > 2 * decode
    assert "by a few percent" in plan("glm-4.7", *GIVEN, "--ram", "64G", "--ctx", 32768)


def test_a_stored_model_comes_before_a_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDMOE_MODELS", str(tmp_path))
    write_k2(tmp_path / "kimi-k2.gguf")
    found = plan_json("kimi-k2", *GIVEN, "--ram", "128GiB", "--ctx", 32768)
    assert found["path"] == str(tmp_path / "kimi-k2.gguf")
    other = plan_json("kimi-k2-instruct", *GIVEN, "--ram", "128GiB", "--ctx", 32768)
    assert other["num_estimated_tensors"] > 1000


def test_pull_judges_as_plan_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {name: Rate(1e9, 8e10) for name in ("read", "int8", "float32")}
    monkeypatch.setattr("hybridmoe.cli.plan_rates.measure", lambda: Limits(**rates))
    said = plan_json(demo_path())["verdict"]
    assert verdict_of(demo_path()) == said and said.startswith("runs: ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deepseek", "do you mean DeepSeek-V3 or DeepSeek-V3.1 or"),
        ("glm5.3", "do you mean GLM-5"),
        ("llama-3", "published models that are known: Kimi-K2-Instruct, "),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_are_known(
    capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert words in refusal(capsys, name)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.42, "0.42 s"),
        (9.94, "9.9 s"),
        (119.4, "119 s"),
        (779.8, "13 min 0 s"),
        (780.6, "13 min 1 s"),
    ],
)
def test_times_of_the_verdict_have_no_sixtieth_second(seconds: float, written: str) -> None:
    assert plan_verdict._time(seconds) == written

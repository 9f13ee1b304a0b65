"""Short spells of the soak over three tiers: invariants after every step, under each fault."""

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")

from bench._tier_spells import FAULTS, run_spell
from bench.synthetic import Shape, write_synthetic

SHAPE = Shape(
    num_layers=4, num_dense_layers=1, hidden=256, dense_inter=256, num_heads=2, q_lora_rank=0,
    num_experts=24, top_k=3, expert_inter=256, num_shared_experts=1, routed_scale=2.5,
    vocab_size=64,
)  # fmt: skip
FAILS = {"errors": "DiskError", "unwanted": "StalledReadError", "touched": "DiskError"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("soak") / "m.gguf"
    write_synthetic(path, SHAPE)
    return path


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "less memory"])
def test_a_spell_loses_nothing(path: Path, fault: str) -> None:
    counts = run_spell(path, fault, seed=3, num_tokens=120)
    assert counts["steps"] > 10
    assert counts["VRAM uploads"] and counts["RAM returned"]
    if fault == "touched":
        assert counts["DiskError"] == 1
    elif fault not in FAILS:
        assert not counts["DiskError"] and not counts["StalledReadError"]

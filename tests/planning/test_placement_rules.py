"""`--place`: patterns over tensor names."""

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.planning.placement_rules import PlacementRules

NAMES = [
    f"blk.{layer}.{part}.weight"
    for layer in range(12)
    for part in ("attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
] + ["output.weight"]


def test_the_first_pattern_that_matches_decides() -> None:
    rules = PlacementRules([r"blk\.1\.=cpu", r"attn=cuda", r"blk=cpu", "a=b=CUDA"])
    assert rules.target("blk.1.attn_output.weight") == "cpu"
    assert rules.target("blk.10.attn_output.weight") == "cuda"
    assert rules.target("blk.10.ffn_up_exps.weight") == "cpu"
    assert rules.target("output.weight") is None
    assert rules.unused(NAMES) == ["a=b=CUDA"]


def test_a_pattern_that_another_one_hides_is_unused() -> None:
    assert PlacementRules(["blk=cpu", r"blk\.3=cuda"]).unused(NAMES) == [r"blk\.3=cuda"]


def test_experts_are_pinned_by_layers() -> None:
    rules = PlacementRules([r"blk\.[0-2]\.ffn_.*_exps=cuda", r"blk\.1.\..*exps=cpu"])
    assert rules.expert_layers(NAMES, 12) == ({0, 1, 2}, {10, 11})
    assert rules.expert_layers(NAMES, 11) == ({0, 1, 2}, {10})
    with pytest.raises(ConfigError, match=r"of blk.0, only ffn_up_exps on cuda"):
        PlacementRules(["ffn_up_exps=cuda"]).expert_layers(NAMES, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blk", "expected REGEX=cpu or REGEX=cuda"),
        ("blk=gpu", "expected REGEX=cpu or REGEX=cuda"),
        ("=cpu", "expected REGEX=cpu or REGEX=cuda"),
        ("blk(=cpu", "unterminated"),
    ],
)
def test_what_is_no_pattern_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PlacementRules([text])
    assert "\n" not in str(caught.value)

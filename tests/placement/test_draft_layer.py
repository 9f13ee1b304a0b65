"""The MTP layer, loaded beside the network, whose responses stay the same."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import read_trace

OPTIONS = {"device": "cpu", "context_tokens": 512}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft") / "tiny.gguf"
    write_tiny(path, type=Type.Q8_0, mtp=True, **{**SMALL, "layers": 4, "gain": 0.3})
    return path


@pytest.mark.parametrize("expert_ram", [None, "60KiB"])
def test_any_drafts_leave_the_response(path: Path, expert_ram: str | None) -> None:
    responses = []
    for speculate in ("off", "mtp:2", "mtp", "auto", 3):
        with hybridmoe.load(path, speculate=speculate, expert_ram=expert_ram, **OPTIONS) as llm:
            assert llm.plan.needs_disk == (expert_ram is not None)
            responses.append(llm.generate("hello", max_tokens=50, temperature=0))
            if speculate == "mtp:2":
                assert 10 < responses[-1].timing.accepted_tokens < 100
                experts = llm.plan.problem.sizes.experts
                assert len(experts) == llm.config.num_moe_layers + 1
    assert len({tuple(response.token_ids) for response in responses}) == 1
    assert not responses[0].timing.draft_tokens


def test_a_trace_has_the_networks_layers(path: Path, tmp_path: Path) -> None:
    with hybridmoe.load(path, speculate="mtp:1", trace=tmp_path / "t", **OPTIONS) as llm:
        llm.generate("hello", max_tokens=8, temperature=0)
    assert read_trace(tmp_path / "t").num_layers == llm.config.num_moe_layers


def test_saved_conversations_are_of_one_kind(path: Path, tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    with hybridmoe.load(path, speculate="mtp:1", **OPTIONS) as llm:
        llm.generate("hello hello hello", max_tokens=4)
        saved = llm.save_sequence(kv)
        assert llm.restore_sequence(kv) == saved > 0
    with (
        hybridmoe.load(path, speculate="off", **OPTIONS) as llm,
        pytest.raises(ConfigError, match=r"num_layers is 5, expected 4"),
    ):
        llm.restore_sequence(kv)

"""A host's share of the experts: the sums of its own experts, from RAM and from disk."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

from hybridmoe.errors import ConfigError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement.expert_share import place_share

SHARE = range(2, 7)
TYPES = {"default": Type.Q8_0, "ffn_down_exps": Type.Q6_K}


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_share_has_the_sums_of_its_experts(tmp_path: Path, fused: bool, tokens: int) -> None:
    write_tiny(tmp_path / "x.gguf", type=TYPES, fused_gate_up=fused)
    generator = torch.Generator().manual_seed(tokens)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        config = read_config(file.metadata, file.tensors)
        x = torch.randn(tokens, config.hidden, generator=generator)
        ids = torch.randint(0, 8, (tokens, 2), generator=generator, dtype=torch.int32)
        weights = torch.rand(tokens, 2, generator=generator)
        is_own = (ids >= SHARE.start) & (ids < SHARE.stop)
        expected = (
            CpuExperts(routed_experts(Weights(file), config))
            .submit(2, x, ids.where(is_own, -1), weights)
            .result()
        )
        own_ids = (ids - SHARE.start).where(is_own, -1)
        one = sum(routed_experts(Weights(file), config).layers[2].matrix_bytes)
        for ram_bytes, kind in ((1 << 40, CpuExperts), (4 * one, CachedExperts)):
            placed = place_share(file, config, SHARE, ram_bytes)
            assert isinstance(placed.backend, kind)
            for _ in range(2):  # from disk, and again
                placed.backend.begin_step(tokens)
                found = placed.backend.submit(2, x, own_ids, weights).result()
                assert torch.equal(found, expected)
            placed.backend.close()


def test_too_little_ram_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.gguf", type=TYPES)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        config = read_config(file.metadata, file.tensors)
        with pytest.raises(ConfigError, match=r"expert_ram=1000 bytes: expected at least"):
            place_share(file, config, SHARE, 1000)

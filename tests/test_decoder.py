"""The decoder's invariants: how a prompt is cut does not matter, nor what came before it."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from parity import relative_error
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.engine.kv_cache import SequenceCache
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder

NUM_TOKENS = 60


@pytest.fixture(scope="module")
def f32_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "tiny.gguf"
    write_tiny(path, variant="k2", type=Type.F32)
    return path


def _logits_in_pieces(path: Path, ids: list[int], piece: int) -> np.ndarray:
    with GGUFFile.open(path) as file:
        from_metadata = hybridmoe.config.ModelConfig.from_metadata(file.metadata)
        model = Decoder(file, from_metadata)
        cache = SequenceCache(from_metadata, len(ids))
        rows = []
        for start in range(0, len(ids), piece):
            chunk = ids[start : start + piece]
            cache.reserve(start + len(chunk))
            rows.append(model.logits(model.forward(chunk, cache, start)).numpy())
        return np.concatenate(rows)


@pytest.mark.parametrize("piece", [1, 7, 32])
def test_pieces_give_the_logits_of_the_whole(f32_path: Path, piece: int) -> None:
    ids = np.random.default_rng(1).integers(0, 256, NUM_TOKENS).tolist()
    whole = _logits_in_pieces(f32_path, ids, NUM_TOKENS)
    assert relative_error(whole, _logits_in_pieces(f32_path, ids, piece)) <= 1e-4


def test_later_tokens_do_not_change_earlier_logits(f32_path: Path) -> None:
    with hybridmoe.load(f32_path) as llm:
        short, long = llm.logits([5, 6, 7]), llm.logits([5, 6, 7, 8, 9])
    assert relative_error(short, long[:3]) <= 1e-5


def test_the_cache_holds_latents_and_nothing_else(f32_path: Path) -> None:
    with GGUFFile.open(f32_path) as file:
        c = hybridmoe.config.ModelConfig.from_metadata(file.metadata)
    cache = SequenceCache(c, 1000)
    cache.reserve(300)
    assert cache.num_bytes == 300 * c.num_layers * (c.kv_lora_rank + c.rope_dim) * 4


def test_growth_keeps_what_was_written_and_stops_at_the_capacity() -> None:
    from test_config import K2

    c = hybridmoe.config.ModelConfig.from_metadata(K2 | {"deepseek2.block_count": 2})
    cache = SequenceCache(c, 700)
    cache.reserve(10)
    cache.rows(1, 10).fill_(3.0)
    cache.reserve(600)
    assert (cache.rows(1, 10) == 3.0).all()
    assert cache.rows(0, 600).shape == (600, c.latent_dim)
    with pytest.raises(ConfigError, match="701 tokens do not fit a context of 700"):
        cache.reserve(701)

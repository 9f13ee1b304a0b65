"""Sparse attention of the network: dense up to top_k positions, and some of them beyond."""

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

import hybridmoe

TOP_K, NUM_TOKENS = 24, 150
IDS = np.random.default_rng(1).integers(0, 256, NUM_TOKENS).tolist()


def logits(path: Path, **options: object) -> np.ndarray:
    with hybridmoe.load(path, device="cpu", **options) as llm:
        return llm.logits(IDS)


@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_up_to_top_k_positions_it_is_dense_bit_for_bit(kv_type: str, tmp_path: Path) -> None:
    results = []
    for top_k in (TOP_K, 100_000):
        write_tiny(tmp_path / "x.gguf", variant="glm5", index_top_k=top_k)
        results.append(logits(tmp_path / "x.gguf", kv_type=kv_type))
    sparse, dense = results
    assert np.array_equal(sparse[:TOP_K], dense[:TOP_K])
    assert not np.isclose(sparse[TOP_K:], dense[TOP_K:], rtol=1e-2).all(1).any()


def test_a_layer_without_an_indexer_attends_to_the_last_selection(tmp_path: Path) -> None:
    """A third indexer in its place, with weights of its own, selects otherwise."""
    results = []
    for types in ((True, True, False, True), (True,) * 4):
        write_tiny(tmp_path / "x.gguf", variant="glm5", index_top_k=TOP_K, index_types=types)
        results.append(logits(tmp_path / "x.gguf"))
    shared, own = results
    assert np.array_equal(shared[:TOP_K], own[:TOP_K])
    assert not np.array_equal(shared[-1], own[-1])

"""Sparse attention by the length of the context: GLM-5.2's shapes.

    python bench/bench_sparse.py
    python bench/bench_sparse.py --kv-type int8 --threads 2

A decode step of four layers, one with an indexer and three that use its selection, with their
experts; then its parts alone. Runs in rounds, one of each length, so that other load affects all.
By CPU time of one thread; with more of them by the clock. `peer` is the time at 2048 positions,
where attention is dense, and the bar 1.1 times that, as its inverse: `value` is steps a second.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from bench.synthetic import GLM_5_2_SLICE, write_synthetic
from hybridmoe.config import KV_TYPES, EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import ops
from hybridmoe.kernels.indexer import select_positions
from hybridmoe.kernels.paged_mla import BlockTables, KvPages, Span, latent_attention, store_kv
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv

LENGTHS = (2048, 8192, 32768, 131_072)  # the first: dense
BAR_LENGTH, BAR = 32768, 1.1


@click.command()
@click.option("--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0], show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--turns", type=int, default=9, show_default=True)
def main(kv_type: str, threads: int, turns: int) -> None:
    """Print the speed of a step and of its parts at each length."""
    ops.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.gguf"
        write_synthetic(path, GLM_5_2_SLICE)
        with GGUFFile.open(path) as file:
            config = ModelConfig.from_metadata(file.metadata)
            cache = _filled_cache(config, kv_type)
            model = Decoder(Weights(file), config)
            span_pages = range(cache.plan.num_pages)

            def step(length: int) -> None:
                model.logits(model.forward([7], [Span(1, length - 1, span_pages)], cache.layers))

            rows = _rows("step", _turns(step, turns, clock), BAR_LENGTH)
            for name, call in _parts(config, cache).items():
                rows += _rows(name, _turns(call, turns, clock), None)
    print_report(rows)


def _filled_cache(config: ModelConfig, kv_type: str) -> KvCache:
    engine = EngineConfig(context_tokens=max(LENGTHS), kv_type=kv_type, kv_tokens=max(LENGTHS))
    cache = KvCache(config, plan_kv(config, engine, 0))
    generator = torch.Generator().manual_seed(1)
    for layer in cache.layers:
        for pages in (layer, layer.index_keys):
            if pages is not None:
                assert isinstance(pages, KvPages)
                for start in range(0, max(LENGTHS), 4096):
                    rows = torch.randn((4096, pages.dim), generator=generator)
                    tables = BlockTables([Span(4096, start, range(cache.plan.num_pages))])
                    store_kv(rows, pages, tables)
    return cache


def _parts(config: ModelConfig, cache: KvCache) -> dict[str, Callable[[int], object]]:
    c, indexer, pages = config, config.indexer, cache.layers[0]
    assert indexer is not None and isinstance(pages, KvPages)
    index_keys = pages.index_keys
    assert index_keys is not None
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn((1, indexer.num_heads, indexer.key_dim), generator=generator)
    weights = torch.randn((1, indexer.num_heads), generator=generator)
    q_latent = torch.randn((c.num_heads, 1, c.kv_lora_rank), generator=generator)
    q_rope = torch.randn((1, c.num_heads, c.rope_dim), generator=generator)

    def tables(length: int) -> BlockTables:
        return BlockTables([Span(1, length - 1, range(cache.plan.num_pages))])

    def select(length: int) -> torch.Tensor | None:
        if length <= indexer.top_k:
            return None
        return select_positions(queries, weights, index_keys, tables(length), indexer.top_k)

    selections = {length: select(length) for length in LENGTHS}

    def attend(length: int) -> torch.Tensor:
        return latent_attention(
            q_latent, q_rope, pages, tables(length), c.softmax_scale, selections[length]
        )

    return {"attention of a layer": attend, "indexer's selection": select}


def _turns(
    call: Callable[[int], object], turns: int, clock: Callable[[], float]
) -> dict[int, list[float]]:
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(turns + 1):  # the first warms up
        for length in LENGTHS:
            start = clock()
            call(length)
            seconds[length].append(clock() - start)
    return {length: times[1:] for length, times in seconds.items()}


def _rows(name: str, seconds: dict[int, list[float]], bar_length: int | None) -> list[Row]:
    first = np.array(seconds[LENGTHS[0]])
    rows = []
    for length, times in seconds.items():
        ratio = float(np.median(np.array(times) / first))
        peer = 1 / float(np.median(first))
        bar = peer / BAR if length == bar_length else None
        note = f"{1e3 * np.median(times):.2f} ms, {ratio:.3f} times that of {LENGTHS[0]}"
        value = peer / ratio
        rows.append(Row(f"{name}, {length} positions", value, "/s", peer=peer, bar=bar, note=note))
    return rows


if __name__ == "__main__":
    main()

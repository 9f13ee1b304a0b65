"""KV cache: planned size, LRU eviction, no page lost or shared by mistake."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from k2_config import K2

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.engine.kv_cache import BlockTable, KvCache
from hybridmoe.errors import ConfigError, DeviceError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.planning.kv_plan import plan_kv

MODEL = ModelConfig.from_metadata(K2 | {"deepseek2.block_count": 2})
NUM_PAGES = 8


def cache_of(num_pages: int) -> KvCache:
    config = EngineConfig(context_tokens=64, kv_tokens=num_pages * PAGE_TOKENS, kv_type="f32")
    return KvCache(MODEL, plan_kv(MODEL, config, 0))


def test_the_plan_is_between_one_context_and_one_per_request() -> None:
    def pages(available: int, **options: Any) -> int:
        config = EngineConfig(**{"context_tokens": 1000, "max_running": 4, **options})
        return plan_kv(MODEL, config, available).num_pages

    assert pages(0) == 16
    assert pages(1 << 50) == 64
    assert 16 < pages(64 << 20) < 64
    assert pages(1 << 50, kv_tokens=2000) == 32
    plan = plan_kv(MODEL, EngineConfig(context_tokens=100), 0)
    assert plan.num_bytes == 2 * 2 * 64 * MODEL.latent_dim * 2  # layers, pages, tokens, f16
    assert str(plan).startswith("KV cache: 128 tokens in 2 pages, f16, 288.00 KiB; context 100")


def test_a_cache_beyond_memory_is_one_line() -> None:
    config = EngineConfig(context_tokens=64, kv_tokens=1 << 44)
    with pytest.raises(ConfigError, match="no memory for KV cache: 17592186044416 tokens"):
        KvCache(MODEL, plan_kv(MODEL, config, 0))


@pytest.mark.parametrize(
    "options",
    [
        {"context_tokens": 0},
        {"kv_tokens": 9},
        {"kv_type": "f64"},
        {"max_running": 0},
        {"max_waiting": -1},
        {"chunk_tokens": True},
        {"decode_slowdown": 1.0},
        {"decode_slowdown": float("nan")},
        {"speculate": 65},
    ],
)
def test_unusable_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        EngineConfig(**{"context_tokens": 10, **options})


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    cache = cache_of(4)

    def use(token: int, num_tokens: int) -> int:
        ids = [token] * num_tokens
        table = cache.acquire_prefix(ids)
        assert cache.grow(table, num_tokens)
        cache.free(table, ids, num_tokens)
        return table.cached_tokens

    assert [use(1, 64), use(2, 64), use(3, 64), use(1, 64)] == [0, 0, 0, 63]
    assert use(4, 100) == 0  # two pages: the free one, and that of 2
    assert cache.num_cached_tokens([2] * 64) == 0
    assert cache.num_cached_tokens([3] * 64) == cache.num_cached_tokens([1] * 64) == 63


class CacheMachine(RuleBasedStateMachine):
    """Random sequences of two token ids; each row holds a hash of its prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(NUM_PAGES)
        self.tables: list[tuple[BlockTable, list[int]]] = []

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=4), times=st.integers(1, 60))
    def acquire(self, ids: list[int], times: int) -> None:
        ids = ids * times
        table = self.cache.acquire_prefix(ids)
        if not self.cache.grow(table, len(ids)):
            self.cache.free(table, ids, table.cached_tokens)
            return
        assert table.cached_tokens < len(ids)
        self._compute(table, ids, table.cached_tokens)
        self.tables.append((table, ids))

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=80))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        if self.tables:
            table, ids = data.draw(st.sampled_from(self.tables))
            if self.cache.grow(table, len(ids) + len(more)):
                ids += more
                self._compute(table, ids, len(ids) - len(more))

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.tables:
            at = data.draw(st.integers(0, len(self.tables) - 1))
            table, ids = self.tables.pop(at)
            self.cache.free(table, ids, len(ids))

    def _compute(self, table: BlockTable, ids: list[int], start: int) -> None:
        for i in range(start, len(ids)):
            page = table.pages[i // PAGE_TOKENS]
            self._rows(page)[i % PAGE_TOKENS] = self._hash(ids[: i + 1])
        self.cache.share_full_pages(table, ids, len(ids))

    def _rows(self, page: int) -> torch.Tensor:
        return self.cache.parts[0][0, page].view(torch.float32)[:, 0]

    @staticmethod
    def _hash(ids: list[int]) -> float:
        return float(hash(tuple(ids)) % 100_003)

    @invariant()
    def rows_match_their_sequences(self) -> None:
        for table, ids in self.tables:
            rows = torch.cat([self._rows(page) for page in table.pages])
            for i in {0, len(ids) // 2, len(ids) - 1}:
                assert rows[i] == self._hash(ids[: i + 1])

    @invariant()
    def no_page_is_lost_or_in_two_tables(self) -> None:
        shared = {node.page for table, _ in self.tables for node in table.nodes}
        own = [p for table, _ in self.tables for p in table.pages[len(table.nodes) :]]
        assert len(set(own)) == len(own)
        assert not shared & set(own)
        assert self.cache.num_available_pages + len(shared) + len(own) == NUM_PAGES


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestCache = CacheMachine.TestCase


class _FullDevice(CpuDevice):
    """A device that raises `error` on allocation, as torch does."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def empty_bytes(self, *shape: int) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8"
                " GiB of which 1.00 GiB is free."
            ),
            ConfigError,
            r"for the KV cache of 64 tokens \(2.00 GiB requested, 1.00 GiB free\).*--vram by",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceError, "the GPU failed"),
        (RuntimeError("[enforce fail] can't allocate memory"), ConfigError, "lower the context"),
    ],
)
def test_an_allocation_failure_is_one_line(
    error: RuntimeError, raised: type[Exception], message: str
) -> None:
    plan = plan_kv(MODEL, EngineConfig(context_tokens=64, max_running=1), 0)
    with pytest.raises(raised, match=message):
        KvCache(MODEL, plan, _FullDevice(error))

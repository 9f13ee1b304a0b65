"""The cache's pages: planned once, never lost, never in two hands, and holding what they should."""

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


def test_the_plan_is_between_one_context_and_one_for_each_request() -> None:
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


def test_memory_that_cannot_be_had_is_one_line() -> None:
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


def test_the_least_recently_used_beginning_goes_first() -> None:
    cache = cache_of(4)

    def use(token: int, num_tokens: int) -> int:
        ids = [token] * num_tokens
        holding = cache.begin(ids)
        assert cache.reserve(holding, num_tokens)
        cache.release(holding, ids, num_tokens)
        return holding.cached_tokens

    assert [use(1, 64), use(2, 64), use(3, 64), use(1, 64)] == [0, 0, 0, 63]
    assert use(4, 100) == 0  # two pages: the free one, and 2's
    assert cache.common_tokens([2] * 64) == 0
    assert cache.common_tokens([3] * 64) == cache.common_tokens([1] * 64) == 63


class CacheMachine(RuleBasedStateMachine):
    """Sequences over two tokens come, grow and go; each row holds a number made of its prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(NUM_PAGES)
        self.held: list[tuple[BlockTable, list[int]]] = []

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=4), times=st.integers(1, 60))
    def begin(self, ids: list[int], times: int) -> None:
        ids = ids * times
        holding = self.cache.begin(ids)
        if not self.cache.reserve(holding, len(ids)):
            self.cache.release(holding, ids, holding.cached_tokens)
            return
        assert holding.cached_tokens < len(ids)
        self._compute(holding, ids, holding.cached_tokens)
        self.held.append((holding, ids))

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=80))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        if self.held:
            holding, ids = data.draw(st.sampled_from(self.held))
            if self.cache.reserve(holding, len(ids) + len(more)):
                ids += more
                self._compute(holding, ids, len(ids) - len(more))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            at = data.draw(st.integers(0, len(self.held) - 1))
            holding, ids = self.held.pop(at)
            self.cache.release(holding, ids, len(ids))

    def _compute(self, holding: BlockTable, ids: list[int], start: int) -> None:
        for i in range(start, len(ids)):
            page = holding.pages[i // PAGE_TOKENS]
            self._rows(page)[i % PAGE_TOKENS] = self._mark(ids[: i + 1])
        self.cache.commit(holding, ids, len(ids))

    def _rows(self, page: int) -> torch.Tensor:
        return self.cache.data[0, page].view(torch.float32)[:, 0]

    @staticmethod
    def _mark(ids: list[int]) -> float:
        return float(hash(tuple(ids)) % 100_003)

    @invariant()
    def rows_are_those_of_their_sequences(self) -> None:
        for holding, ids in self.held:
            rows = torch.cat([self._rows(page) for page in holding.pages])
            for i in {0, len(ids) // 2, len(ids) - 1}:
                assert rows[i] == self._mark(ids[: i + 1])

    @invariant()
    def no_page_is_lost_or_written_by_two(self) -> None:
        shared = {node.page for holding, _ in self.held for node in holding.nodes}
        own = [p for holding, _ in self.held for p in holding.pages[len(holding.nodes) :]]
        assert len(set(own)) == len(own)
        assert not shared & set(own)
        assert self.cache.num_available + len(shared) + len(own) == NUM_PAGES


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestCache = CacheMachine.TestCase


class _FullCard(CpuDevice):
    """A card without room; `error` is torch's."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def empty_bytes(self, *shape: int) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8"
                " GiB of which 1.00 GiB is free."
            ),
            ConfigError,
            r"for latents of 64 tokens \(2.00 GiB are needed, 1.00 GiB are free\).*lower --vram by",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceError, "the card failed"),
        (RuntimeError("[enforce fail] can't allocate memory"), ConfigError, "lower the context"),
    ],
)
def test_latents_that_have_no_room_are_one_line(
    error: RuntimeError, told: type[Exception], message: str
) -> None:
    plan = plan_kv(MODEL, EngineConfig(context_tokens=64, max_running=1), 0)
    with pytest.raises(told, match=message):
        KvCache(MODEL, plan, _FullCard(error))

"""A budget for experts in RAM: divided among buffers of the sizes that layers need."""

import numpy as np
import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.planning.buffer_pools import PartBytes, group_layers
from hybridmoe.planning.disk_cache_plan import DiskCachePlan, plan_disk_cache
from hybridmoe.units import parse_bytes


def check(plan: DiskCachePlan, budget: int, by_layer: list[PartBytes], num_experts: int) -> None:
    """All of the budget is used, by buffers that are large enough."""
    assert plan.num_bytes <= budget
    for size, number in zip(by_layer, plan.pool_of_layer, strict=True):
        pool = plan.pools[number]
        assert all(need <= room for need, room in zip(size, pool.part_bytes, strict=True))
    if any(pool.num_slots < pool.num_layers * num_experts for pool in plan.pools):
        assert budget - plan.num_bytes < plan.buffer_bytes
    for number, pool in enumerate(plan.pools):
        assert pool.num_layers == plan.pool_of_layer.count(number) > 0
        assert 0 <= pool.num_slots <= pool.num_layers * num_experts
        assert pool.num_staging >= plan.top_k
        assert pool.num_aside == plan.num_ahead + plan.num_leaving


@pytest.mark.parametrize("num_sizes", [1, 2, 4])
def test_plans_never_exceed_their_budget(num_sizes: int) -> None:
    rng = np.random.default_rng(num_sizes)
    num_planned = num_warned = 0
    for _ in range(300):
        sizes = [tuple(rng.integers(1, 40, 3).tolist()) for _ in range(num_sizes)]
        by_layer = [sizes[i] for i in rng.integers(0, num_sizes, int(rng.integers(1, 60)))]
        experts = int(rng.integers(1, 60))
        top_k = int(rng.integers(1, min(8, experts) + 1))
        others = {"num_ahead": int(rng.integers(0, 4)), "num_leaving": int(rng.integers(0, 4))}
        budget = int(rng.integers(0, 20_000))
        least = top_k + sum(others.values())
        most = [max(size[i] for size in by_layer) for i in range(3)]
        try:
            plan = plan_disk_cache(budget, by_layer, experts, top_k, **others)
        except ConfigError as error:
            assert budget < least * sum(most)
            assert f"expected at least {least * sum(most)} " in str(error)
            continue
        num_planned += 1
        check(plan, budget, by_layer, experts)
        if plan.warning is not None:  # what it names is enough
            num_warned += 1
            named = plan.warning.split("--expert-ram ")[1].split(" would")[0]
            more = plan_disk_cache(parse_bytes(named), by_layer, experts, top_k, **others)
            assert more.warning is None
    assert num_planned > 100 and num_warned > 10


def test_layers_of_smaller_types_have_smaller_buffers_where_there_are_many() -> None:
    small, large = (100, 100, 100), (100, 100, 146)  # about Q4_K_M's two kinds of layers
    by_layer = [small, large] * 30
    one = plan_disk_cache(6_000_000, [large] * 60, 384, 8)
    two = plan_disk_cache(6_000_000, by_layer, 384, 8)
    assert [pool.part_bytes for pool in two.pools] == [large, small]
    assert two.num_slots > 1.05 * one.num_slots
    assert two.pools[0].num_buffers == pytest.approx(two.pools[1].num_buffers, abs=1)
    # In a small budget, the buffers beside the slots would take more than that.
    few = plan_disk_cache(16 * 346, by_layer, 384, 8)
    assert [pool.part_bytes for pool in few.pools] == [large]


def test_a_size_of_few_layers_has_no_pool_of_its_own() -> None:
    by_layer = [(100, 100, 100)] * 59 + [(100, 100, 99)]
    sizes, size_of = group_layers(600_000, by_layer, 8)
    assert sizes == ((100, 100, 100),) and size_of == (0,) * 60
    odd = [(10, 10, 90)] * 59 + [(90, 10, 10)]  # neither takes the other's
    sizes, _ = group_layers(60_000, odd, 8)
    assert len(sizes) == 2

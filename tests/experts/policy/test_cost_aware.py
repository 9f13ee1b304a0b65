"""Cost-aware admission: what it may do on any trace, and what it reaches on typical ones."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybridmoe.cachebench.simulator import (
    EVICTIONS,
    HITS,
    UPLOADS,
    Requests,
    hottest_keys,
    requests_of,
    simulate,
)
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.experts.policy import CacheShape
from hybridmoe.experts.policy.cost_aware import (
    BALANCE,
    CAP,
    CAUTION,
    FLOOR,
    HORIZON,
    RATE,
    RISK,
    WATCH,
    CostAware,
)

COSTS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0, float("inf")])


def drawn(
    random: np.random.Generator, num_experts: int, skew: float, shift: int
) -> NDArray[np.int32]:
    """Draw 1 to 4 distinct experts; those after `shift` are the popular ones."""
    chances = np.roll(np.arange(1, num_experts + 1) ** -skew, shift)
    count = int(random.integers(1, 5))
    chosen = random.choice(num_experts, count, replace=False, p=chances / chances.sum())
    return chosen.astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), slots=st.integers(1, 24), skew=st.floats(0, 3), cost=COSTS)
def test_swaps_never_cost_more_than_the_hits_and_the_risk(
    seed: int, slots: int, skew: float, cost: float
) -> None:
    policy, random = CostAware(CacheShape(2, 12, slots, 4)), np.random.default_rng(seed)
    policy.upload_hits = cost
    policy.warm(np.arange(slots))
    num_hits = num_choices = num_swaps = 0
    for visit in range(400):
        for layer in range(2):
            experts = drawn(random, 12, skew, visit // int(random.integers(1, 100)))
            got = policy.on_access(layer, experts, False)
            num_hits += int(got.hits.sum())
            num_choices += len(experts)
            num_swaps += len(got.evicted)
            paid = num_swaps * cost if num_swaps else 0.0
            assert paid <= num_hits + RISK * num_choices + 1e-6
    assert cost < float("inf") or num_swaps == 0


class Model:
    """The rule of admission in plain numbers, one decaying pass over all scores a visit."""

    def __init__(self, num_layers: int, num_experts: int, cost: float) -> None:
        self.uses = np.zeros((num_layers, num_experts))
        self.total, self.total_squares = np.zeros(num_layers), np.zeros(num_layers)
        self.visits = np.zeros(num_layers, int)
        self.until = np.zeros((num_layers, num_experts))
        self.balance, self.cost = 0.0, cost

    def note(self, layer: int, experts: list[int], resident: set[int]) -> None:
        num_experts = self.uses.shape[1]
        fading = np.exp(-RATE)
        self.uses[layer] *= fading
        self.uses[layer, experts] += 1
        self.total[layer] = self.total[layer] * fading + 1
        self.total_squares[layer] = self.total_squares[layer] * fading**2 + 1
        self.visits[layer] += 1
        self.balance += RISK * len(experts)
        for expert in experts:
            if self.visits[layer] < self.until[layer, expert]:
                self.balance += 1 if layer * num_experts + expert in resident else -1
        self.balance = max(FLOOR * self.cost, min(self.balance, CAP * self.cost))

    def rate(self, key: int) -> float:
        layer, expert = divmod(key, self.uses.shape[1])
        found = self.uses[layer] / self.total[layer]
        n = self.total[layer] ** 2 / self.total_squares[layer]
        noise = found.mean() * (1 - found.mean()) / n
        noise *= 1 + CAUTION * np.sqrt(2 / len(found))
        trust = max(0.0, 1 - noise / max(found.var(), 1e-300))
        return float(found.mean() + trust * (found[expert] - found.mean()))

    def swap(self, newcomer: int, victim: int) -> None:
        self.balance -= self.cost
        for key in (newcomer, victim):
            layer, expert = divmod(key, self.uses.shape[1])
            self.until[layer, expert] = self.visits[layer] + WATCH


@pytest.mark.parametrize("cost", [0.5, 3.0])
def test_a_swap_is_made_if_and_only_if_it_pays_and_is_paid(cost: float) -> None:
    policy, model = CostAware(CacheShape(1, 24, 8, 4)), Model(1, 24, cost)
    policy.upload_hits = cost
    policy.warm(np.arange(8))
    random = np.random.default_rng(3)
    resident, num_swaps = set(range(8)), 0
    for visit in range(1500):
        experts = drawn(random, 24, 1.2, visit // 300 * 7)
        model.note(0, experts.tolist(), resident)
        got = policy.on_access(0, experts, False)
        assert got.hits.tolist() == [e in resident for e in experts.tolist()]
        assert len(got.evicted) <= 1  # a pass swaps one here
        paid = len(got.evicted) * cost
        assert policy.state.score[BALANCE, 0] == pytest.approx(model.balance - paid, abs=1e-9)
        if len(got.evicted):
            (newcomer,), (victim,) = got.admitted.tolist(), got.evicted.tolist()
            gain = HORIZON * (model.rate(newcomer) - model.rate(victim))
            assert gain >= cost - 1e-6 and model.balance >= cost - 1e-6
            others = resident - set(experts.tolist())
            assert model.uses[0, victim] <= min(model.uses[0, list(others)]) + 1e-9
            model.swap(newcomer, victim)
            resident = resident - {victim} | {newcomer}
            num_swaps += 1
        elif model.balance >= cost + 1e-6:
            others = list(resident - set(experts.tolist()))
            victim = others[int(np.argmin(model.uses[0, others]))]
            for newcomer in set(experts.tolist()) - resident:
                gain = HORIZON * (model.rate(newcomer) - model.rate(victim))
                is_higher = model.uses[0, newcomer] > model.uses[0, victim] * (1 + 1e-9)
                assert gain < cost + 1e-6 or not is_higher
    assert num_swaps >= 10


def test_prompts_swap_nothing_and_teach_nothing() -> None:
    policies = [CostAware(CacheShape(1, 16, 4, 2)) for _ in range(2)]
    random = np.random.default_rng(0)
    for policy in policies:
        policy.warm(np.arange(4))
    for _ in range(600):
        experts = drawn(random, 16, 1.5, 5)
        prompt = policies[1].on_access(0, random.permutation(16).astype(np.int32)[:12], True)
        assert not len(prompt.admitted) and not len(prompt.evicted)
        first, second = (policy.on_access(0, experts, False) for policy in policies)
        assert first.admitted.tolist() == second.admitted.tolist()
    assert policies[0].resident().tolist() == policies[1].resident().tolist() != [0, 1, 2, 3]


LOCALITIES = {
    "uniform": Locality(zipf=0, zipf_first=0, reuse=0),
    "reused": Locality(zipf=0, zipf_first=0, reuse=0.3),
    "sticky": Locality(zipf=0, zipf_first=0, reuse=0.8),
    "skewed": Locality(zipf=1.2, zipf_first=0.8, reuse=0.3),
    "topics": Locality(zipf=1.0, zipf_first=0.6, num_domains=8, conversation_tokens=500),
    "short": Locality(zipf=1.0, zipf_first=0.6, num_domains=8, conversation_tokens=100),
}


def net(requests: Requests, make: Callable[[], CostAware], cost: float) -> tuple[float, float]:
    """Hits less the cost of uploads, as a share of the choices; and swaps by step."""
    outcome = simulate(make(), requests)
    assert outcome.total(UPLOADS) == outcome.total(EVICTIONS)
    value = outcome.total(HITS) - cost * outcome.total(UPLOADS)
    return value / len(requests.experts), outcome.total(UPLOADS) / requests.num_steps


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("name", LOCALITIES)
def test_never_worse_than_no_uploads_and_near_the_best_choice_that_stays(
    name: str, share: float
) -> None:
    """From a filling without knowledge, and from the most used of the whole trace."""
    requests = requests_of(
        synthetic_trace(3000, num_layers=4, num_experts=48, locality=LOCALITIES[name])
    )
    slots, cost = int(share * 192), 3.0
    evenly = np.arange(192).reshape(4, 48).T.reshape(-1)
    total = len(requests.experts)

    def kept(keys: NDArray[np.int64]) -> float:
        return simulate("static", requests, slots, warm=keys).total(HITS) / total

    def cache(keys: NDArray[np.int64]) -> Callable[[], CostAware]:
        def make() -> CostAware:
            policy = CostAware(requests.shape(slots))
            policy.upload_hits = cost
            policy.warm(keys)
            return policy

        return make

    cold, _ = net(requests, cache(evenly), cost)
    warm, _ = net(requests, cache(hottest_keys(requests)), cost)
    best = kept(hottest_keys(requests))
    assert cold >= kept(evenly) - 0.015
    assert warm >= best - 0.04
    if name == "skewed":
        assert cold >= 0.9 * best
    if name == "topics":
        assert min(cold, warm) > best


def test_routing_without_hot_experts_swaps_next_to_nothing() -> None:
    requests = requests_of(
        synthetic_trace(3000, num_layers=4, num_experts=48, locality=LOCALITIES["uniform"])
    )

    def make() -> CostAware:
        policy = CostAware(requests.shape(48))
        policy.warm(np.arange(48))
        return policy

    assert net(requests, make, 3.0)[1] < 0.01

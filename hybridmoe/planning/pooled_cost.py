"""Cost model of experts pooled from several hosts: seconds of a token and of a prompt.

Rank 0 has everything but the others' routed experts. In each layer it sends them the states,
computes its own share and the shared expert, and waits for their sums:

    layer    what rank 0 does before + max(own share + shared expert, each other's trip + its share)
    trip     there and back, all messages of a layer over rank 0's one link, and handling

Routing is taken to be uniform: how many of a token's experts a host has is chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import comb, prod
from typing import NamedTuple

from hybridmoe.config import ModelConfig
from hybridmoe.planning.cost_model import Step, decode, disk_rate
from hybridmoe.planning.layer_cost import Hits
from hybridmoe.planning.model_sizes import ModelSizes, Part
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefill_split import cpu_products_s
from hybridmoe.planning.prompt_cost import dense_products_s, distinct_experts, prompt
from hybridmoe.planning.rates import PROMPT_OVERHEAD, Rates

__all__ = ["HANDLING_S", "Host", "Link", "PooledCost", "PooledStep"]

# Python, gloo's threads and the scheduler at both ends, for a request and its sum: a layer without
# experts took 180 us over loopback, whose delay was 18 us one way: docs/log.md, 2026-11-28.
HANDLING_S = 117e-6
# Messages are put together, copied by the system and added up: 3.6 ms at rank 0 for the 14.7 MB of
# 256 tokens, and about as much at the worker.
_COPIED_BYTES_PER_S = 2e9
Parts = tuple[Part, ...]  # of one expert
_MOST_OUTCOMES = 10_000  # with more, a layer is about as expected
_IN_RAM = Hits(0.0, 1.0)


class Link(NamedTuple):
    """Network between rank 0 and every other host."""

    delay_s: float  # one way
    bytes_per_s: float


class Host(NamedTuple):
    """Host of the cluster, and its share of each layer's experts."""

    name: str
    rates: Rates
    experts: range
    in_ram: float = 1.0  # part of its experts that its RAM holds; others are read from its disk


@dataclass(frozen=True, slots=True)
class PooledStep:
    """Cost of tokens that are computed together."""

    num_tokens: int
    seconds: dict[str, float]  # by cause; their sum is the time
    waited_for: tuple[float, ...]  # of these, experts' seconds in which each host was the last

    @property
    def total_s(self) -> float:
        """Time of all tokens."""
        return sum(self.seconds.values())

    @property
    def tokens_per_s(self) -> float:
        """Rate."""
        return self.num_tokens / self.total_s


class _Layer(NamedTuple):
    """Expected seconds of a layer's experts."""

    own_s: float  # rank 0's routed experts
    waited_for: tuple[float, ...]


class PooledCost:
    """Predictor for one model on hosts of which the first is rank 0."""

    def __init__(
        self,
        plan: Plan,
        sizes: ModelSizes,
        hosts: Sequence[Host],
        link: Link,
        handling_s: float = HANDLING_S,
    ) -> None:
        """plan: of rank 0's memory, with any share of the experts. sizes: of the whole model."""
        self._plan, self._sizes, self._hosts = plan, sizes, hosts
        self._link, self._handling_s = link, handling_s

    def decode(self, position: int) -> PooledStep:
        """Cost of one token of one conversation, `position` tokens into it."""
        base = decode(self._plan, self._hosts[0].rates, _IN_RAM, position, is_pooled=True)
        shared_s = _read_s(self._sizes.shared, self._hosts[0].rates) / self._num_layers
        layers = self._layers(partial(self._decoded_layer, shared_s))
        return _whole(base, layers, shared_s)

    def prompt(self, num_tokens: int) -> PooledStep:
        """Cost of a prompt, in steps as long as rank 0's plan has them."""
        rates, layers, shared = self._hosts[0].rates, list[_Layer](), 0.0
        most = self._plan.step_tokens
        for start in range(0, num_tokens, most):
            tokens = min(most, num_tokens - start)
            dense_s = dense_products_s(self._sizes.shared, rates, None, tokens)
            shared_s = PROMPT_OVERHEAD * dense_s / self._num_layers
            layers += self._layers(partial(self._prompt_layer, shared_s, tokens))
            shared += shared_s * self._num_layers
        base = prompt(self._plan, rates, _IN_RAM, num_tokens)
        return _whole(base, layers, shared / max(1, len(layers)))

    def _layers(self, cost: Callable[[Parts], _Layer]) -> list[_Layer]:
        """Cost of each layer; most have equal parts."""
        known = {parts: cost(parts) for parts in set(self._sizes.experts)}
        return [known[parts] for parts in self._sizes.experts]

    def _decoded_layer(self, shared_s: float, parts: Parts) -> _Layer:
        times = [_read_s(parts, host.rates) for host in self._hosts]
        reads = [self._reading_s(parts, host) for host in self._hosts]
        counts = [len(host.experts) for host in self._hosts]
        own_s, waited_for = 0.0, [0.0] * len(self._hosts)
        for chance, chosen in _choices(counts, self._config.top_k):
            trip_s = self._trip_s(sum(1 for k in chosen[1:] if k))
            # What a disk reads last is computed after it.
            busy = [
                max(k * time, k * read + time if k and read else 0.0)
                for k, time, read in zip(chosen, times, reads, strict=True)
            ]
            others = (b + trip_s if k else 0.0 for b, k in zip(busy, chosen, strict=True))
            ends = [busy[0] + shared_s, *islice(others, 1, None)]
            own_s += chance * busy[0]
            waited_for[ends.index(max(ends))] += chance * max(ends)
        return _Layer(own_s, tuple(waited_for))

    def _prompt_layer(self, shared_s: float, num_tokens: int, parts: Parts) -> _Layer:
        c = self._config
        touched = distinct_experts(c.num_experts, c.top_k, num_tokens)
        busy = []
        for host in self._hosts:
            theirs = touched * len(host.experts) / c.num_experts
            products_s = cpu_products_s(parts, host.rates, num_tokens * c.top_k / touched)
            reading_s = self._reading_s(parts, host)
            busy.append(theirs * max(PROMPT_OVERHEAD * products_s, reading_s))
        whole = comb(c.num_experts, c.top_k)
        elsewhere = (comb(c.num_experts - len(h.experts), c.top_k) for h in self._hosts[1:])
        trip_s = self._trip_s(sum(num_tokens * (1 - n / whole) for n in elsewhere))
        ends = [busy[0] + shared_s, *(b + trip_s for b in busy[1:])]
        last = ends.index(max(ends))
        waited_for = tuple(end * (index == last) for index, end in enumerate(ends))
        return _Layer(busy[0], waited_for)

    @property
    def _config(self) -> ModelConfig:
        return self._sizes.config

    @property
    def _num_layers(self) -> int:
        return max(1, len(self._sizes.experts))

    def _reading_s(self, parts: Parts, host: Host) -> float:
        """Expect the seconds that the disk takes for one expert."""
        if host.in_ram >= 1.0:
            return 0.0
        disk = disk_rate(host.rates, Hits(0.0, host.in_ram))
        return (1.0 - host.in_ram) * sum(part.num_bytes for part in parts) / disk

    def _trip_s(self, num_tokens: float) -> float:
        """Seconds of a request and its sum. num_tokens: to all hosts, over rank 0's one link."""
        c = self._config
        num_bytes = num_tokens * (2 * 4 * c.hidden + 8 * c.top_k)
        byte_s = 1 / self._link.bytes_per_s + 1 / _COPIED_BYTES_PER_S
        return self._handling_s + 2 * self._link.delay_s + num_bytes * byte_s


def _whole(base: Step, layers: Sequence[_Layer], shared_s: float) -> PooledStep:
    """Put layers' experts into what rank 0 does besides. shared_s: of a layer, counted in both."""
    own_s = sum(layer.own_s for layer in layers)
    waited_for = [sum(seconds) for seconds in zip(*(one.waited_for for one in layers), strict=True)]
    waiting_s = sum(waited_for) - own_s - shared_s * len(layers)
    seconds = {
        name: base.seconds[name] for name in ("dense weights", "attention", "between kernels")
    }
    more = {"experts of rank 0": own_s, "waiting for other hosts": max(0.0, waiting_s)}
    return PooledStep(base.num_tokens, seconds | more, tuple(waited_for))


def _read_s(parts: Sequence[Part], rates: Rates) -> float:
    return sum(map(rates.token_s, parts))


def _choices(counts: Sequence[int], top_k: int) -> Iterator[tuple[float, tuple[float, ...]]]:
    """Chance, and how many of a token's experts each host has; counts: experts of each host."""
    total = sum(counts)
    if comb(top_k + len(counts) - 1, top_k) > _MOST_OUTCOMES:
        yield 1.0, tuple(top_k * count / total for count in counts)
        return
    for found in _parts_of(top_k, len(counts)):
        ways = prod(comb(n, k) for n, k in zip(counts, found, strict=True))
        if ways:
            yield ways / comb(total, top_k), found


def _parts_of(number: int, num_parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum of `num_parts` numbers from 0 on."""
    if num_parts == 1:
        yield (number,)
        return
    for first in range(number + 1):
        for rest in _parts_of(number - first, num_parts - 1):
            yield (first, *rest)

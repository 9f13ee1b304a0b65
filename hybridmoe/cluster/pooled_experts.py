"""Experts of several hosts as one backend: this host's own, and those of workers.

Each layer sends a worker one request, with the tokens that chose its experts, and gets one sum for
each of them. Requests leave before this host's own experts are computed, sums are awaited after the
shared expert. They are added in the order of ranks: for the same shares, the same bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.cluster.link import Link
from hybridmoe.cluster.message import Header, Kind
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend, HostCallTime
from hybridmoe.experts.stats import TIERS, ExpertStats

__all__ = ["Links", "PooledExperts", "Remote"]


class Remote(NamedTuple):
    """Worker that is there: its connection, and its experts of each layer."""

    link: Link
    experts: range


class Links(Protocol):
    """Connections to all workers, which may break and come back."""

    @property
    def outage(self) -> str | None:
        """Line on a worker that is away; None if all are there."""

    def current(self) -> Sequence[Remote]:
        """Return the workers by rank. Errors: ClusterError if one is away."""


class PooledExperts(ExpertBackend):
    """Backend over the hosts of a cluster. Not thread-safe, except `stats` and `outage`."""

    def __init__(self, own: ExpertBackend, experts: range, links: Links) -> None:
        """own: computes this host's `experts` of each layer, numbered from 0."""
        self._own, self._experts, self._links = own, experts, links
        self._remotes: Sequence[Remote] = ()
        self._step = self._step_tokens = 0
        self._is_unwanted: Callable[[], bool] = lambda: False

    @property
    def wants_prefetch_hints(self) -> bool:
        return self._own.wants_prefetch_hints

    @property
    def outage(self) -> str | None:
        return self._links.outage

    def ready(self, wait_s: float) -> None:
        self._own.ready(wait_s)

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        self._is_unwanted = is_unwanted
        self._own.abandon_when(is_unwanted)

    def begin_step(self, num_tokens: int) -> None:
        """Start a step with the workers that are there. Errors: ClusterError if one is away."""
        self._remotes = self._links.current()
        self._step += 1
        self._step_tokens = num_tokens
        self._own.begin_step(num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Send the workers their tokens, and start this host's; see `ExpertBackend.submit`.

        Errors: ClusterError.
        """
        states, chosen, factors = x.cpu().numpy(), ids.cpu().numpy(), weights.cpu().numpy()
        calls = []
        for remote in self._remotes:
            call = self._request(remote, layer, states, chosen, factors)
            if call is not None:
                calls.append(call)
        own_ids = torch.from_numpy(_own_ids(chosen, self._experts)).to(ids.device)
        return _PooledSum(self._own.submit(layer, x, own_ids, weights), calls)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self._own.prefetch(layer, torch.from_numpy(_own_ids(ids.cpu().numpy(), self._experts)))

    def end_step(self) -> None:
        self._own.end_step()

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        """See `ExpertBackend.tiers`; those of workers are RAM's."""
        is_own = (ids >= self._experts.start) & (ids < self._experts.stop)
        own = self._own.tiers(np.where(is_own, ids - self._experts.start, 0).astype(np.int16))
        return np.where(is_own, own, np.uint8(TIERS.index("RAM")))

    def stats(self) -> ExpertStats | None:
        return self._own.stats()

    def host_call_times(self) -> list[HostCallTime]:
        return self._own.host_call_times()

    def close(self) -> None:
        self._own.close()

    def _request(
        self,
        remote: Remote,
        layer: int,
        states: NDArray[np.float32],
        ids: NDArray[np.int32],
        weights: NDArray[np.float32],
    ) -> "_Call | None":
        """Send a worker the tokens that chose its experts. Returns None if none did."""
        link = remote.link
        own_ids = _own_ids(ids, remote.experts)
        rows = np.flatnonzero(own_ids.max(axis=1) >= 0)
        tokens = len(rows)
        if not tokens:
            return None
        link.drain()
        request = link.outgoing.request(tokens)
        if tokens == len(ids):
            request.ids[:], request.weights[:], request.states[:] = own_ids, weights, states
        else:
            own_ids.take(rows, 0, out=request.ids)
            weights.take(rows, 0, out=request.weights)
            states.take(rows, 0, out=request.states)
        header = Header(Kind.REQUEST, layer, tokens, self._step_tokens, self._step)
        link.ask_unwanted = self._is_unwanted
        return _Call(link, link.request(header), rows if tokens < len(ids) else None)


class _Call(NamedTuple):
    """Request under way."""

    link: Link
    header: Header
    rows: NDArray[np.intp] | None  # tokens of the step; None = all

    def add_to(self, y: Tensor) -> None:
        """Add the worker's sum to its tokens. Errors: ClusterError, StalledReadError."""
        sums = torch.from_numpy(self.link.take_sum(self.header))  # (T', H)
        if self.rows is None:
            y.add_(sums.to(y.device))
        else:
            y.index_add_(0, torch.from_numpy(self.rows).to(y.device), sums.to(y.device))


class _PooledSum(Pending):
    """Sum of a layer's experts, of which workers still compute some."""

    __slots__ = ("_calls", "_own")

    def __init__(self, own: Pending, calls: Sequence[_Call]) -> None:
        self._own, self._calls = own, calls

    def result(self) -> Tensor:
        """Wait for the workers, in the order of ranks. Errors: ClusterError, StalledReadError."""
        y = self._own.result()
        for call in self._calls:
            call.add_to(y)
        return y


def _own_ids(ids: NDArray[np.int32], experts: range) -> NDArray[np.int32]:
    """Number the ids in a range from 0; others become -1."""
    numbers = ids - np.int32(experts.start)
    numbers[numbers.view(np.uint32) >= len(experts)] = -1  # those below the range are large
    return numbers

"""A server process under seconds of mixed load: nothing fails, nothing leaks."""

import asyncio

import pytest
from waiting import HANG_S

from bench._served import served
from bench._soak_requests import KINDS
from bench.soak_serve import Soak, server_arguments

WARM_UP_REQUESTS = 100


def answered(soak: Soak) -> set[str]:
    """Kinds of requests that got a status."""
    return {name for name, ended in soak.counts if ended.isdecimal()}


def has_left(soak: Soak) -> bool:
    return "left" in {ended for _, ended in soak.counts}


@pytest.mark.slow
def test_a_server_under_mixed_load_fails_nobody_and_is_left_as_it_was() -> None:
    with served(server_arguments()) as server:
        soak = Soak(server, num_clients=8)

        def was_warmed_up(elapsed_s: float) -> bool:
            return soak.counts.total() >= WARM_UP_REQUESTS or elapsed_s > HANG_S

        def has_seen_all(elapsed_s: float) -> bool:
            is_enough = answered(soak) == KINDS.keys() and has_left(soak)
            return is_enough or elapsed_s > HANG_S

        asyncio.run(soak.run([was_warmed_up, has_seen_all]))
    assert soak.faults == []
    assert answered(soak) == KINDS.keys() and has_left(soak)
    last = soak.rests[-1]
    assert (last.running, last.waiting, last.pages_used) == (0, 0, 0)

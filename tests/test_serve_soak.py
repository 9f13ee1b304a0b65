"""A server of its own, some seconds under mixed load: nothing fails, and nothing is left behind."""

import asyncio

import pytest

from bench._served import served
from bench._soak_requests import KINDS
from bench.soak_serve import Soak, server_arguments


@pytest.mark.slow
def test_a_server_under_mixed_load_fails_nobody_and_is_left_as_it_was() -> None:
    with served(server_arguments()) as server:
        soak = Soak(server, num_clients=8)
        asyncio.run(soak.run(warm_up_s=4.0, seconds=8.0))
    assert soak.faults == []
    answered = {name for name, ended in soak.counts if ended.isdecimal()}
    assert answered == KINDS.keys()
    assert "left" in {ended for _, ended in soak.counts}
    last = soak.rests[-1]
    assert (last.running, last.waiting, last.pages_used) == (0, 0, 0)

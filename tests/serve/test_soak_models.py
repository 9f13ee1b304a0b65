"""Two models that take turns in a server process under load: nothing is lost, nothing stays."""

import asyncio
from pathlib import Path

import pytest

from bench._served import served
from bench.soak_models import SMALL, ModelSoak, server_arguments
from bench.synthetic import write_synthetic

NUM_REQUESTS, NUM_CLIENTS = 24, 6


@pytest.mark.slow
def test_models_that_take_turns_lose_no_request_and_give_all_back(tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    write_synthetic(small, SMALL)
    with served(server_arguments(small)) as server:
        soak = ModelSoak(server, ("demo", "small"), NUM_CLIENTS)
        asyncio.run(soak.run(NUM_REQUESTS, num_bursts=1))
        log = server.log.read_text(encoding="utf-8")
    assert soak.faults == []
    assert soak.counts.total() == NUM_REQUESTS
    assert log.count("ready: ") > 3  # they did take turns
    first, *rests = soak.rests
    assert all((rest.maps, rest.files) == (0, first.files) for rest in rests)
    assert all(rest.threads <= first.threads for rest in rests)

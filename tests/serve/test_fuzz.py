"""Random requests by the endpoint's own OpenAPI document: refused or served, never a 5xx."""

import pytest
from fake_engine import FakeLLM
from live_server import live_server

from bench.fuzz_serve import fuzz


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_random_request_makes_the_server_fail() -> None:
    llm = FakeLLM(context_tokens=512)
    with live_server(llm) as server:
        counts, faults = fuzz(server.url, num_examples=16)
        assert llm.engine.num_running == 0
    llm.close()
    assert faults == []
    answered = {label for label, status in counts if status == 200}
    assert {"POST /v1/completions", "GET /v1/models"} <= answered
    assert len(answered) >= 15  # requests get past the checks of their fields
    assert sum(counts.values()) > 120

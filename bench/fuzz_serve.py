"""Requests made at random from the endpoint's own OpenAPI document; none may get a 5xx.

    python bench/fuzz_serve.py                 # the embedded model, 200 examples an operation
    python bench/fuzz_serve.py --examples 500 --url http://127.0.0.1:8000

Prints how many requests of each operation got which status. Exits with 1 where one got a 5xx (but
for embeddings' 501, which is what is promised), or none was answered at all.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

__all__ = ["fuzz"]

_PROMISED = {"POST /v1/embeddings": {501}}


def fuzz(url: str, num_examples: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Counts of (operation, status), and a line for each answer that must not be.

    Valid and invalid requests in turn; always the same ones for the same document.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    model = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    counts: Counter[tuple[str, int]] = Counter()
    faults: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=max(1, num_examples // 2),
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: schemathesis.Case) -> None:
                label = case.operation.label
                if isinstance(case.body, dict) and "model" in case.body and sum(counts.values()) % 4:
                    case.body["model"] = model  # a name made up would end most requests at once
                answer = case.call()
                counts[label, answer.status_code] += 1
                if answer.status_code >= 500 and answer.status_code not in _PROMISED.get(label, ()):
                    faults.append(f"{label}: {answer.status_code} {answer.text[:200]}")

            try:
                ask()
            except Unsatisfiable:  # a GET without parameters cannot be invalid
                pass
    return counts, faults

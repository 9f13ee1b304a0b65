"""Random requests by the endpoint's own OpenAPI document; none may get a 5xx.

    python bench/fuzz_serve.py                 # the embedded model, 200 examples an operation
    python bench/fuzz_serve.py --examples 500 --url http://127.0.0.1:8000

Prints counts of requests by operation and status. Exits with 1 where one got a 5xx (but
for the 501 that some operations promise), or none got a 200.
"""

import contextlib
import sys
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

from bench._served import served

__all__ = ["fuzz"]

_PROMISED = {f"POST {path}": {501} for path in ("/v1/embeddings", "/infill", "/api/embed")}


def fuzz(url: str, num_examples: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Counts of (operation, status), and a line for each reply that must not be.

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
                if (
                    isinstance(case.body, dict)
                    and "model" in case.body
                    and sum(counts.values()) % 4
                ):
                    case.body["model"] = model  # a name made up would end most requests at once
                reply = case.call()
                counts[label, reply.status_code] += 1
                if reply.status_code >= 500 and reply.status_code not in _PROMISED.get(label, ()):
                    faults.append(f"{label}: {reply.status_code} {reply.text[:200]}")

            with contextlib.suppress(Unsatisfiable):  # a GET without parameters has no invalid form
                ask()
    return counts, faults


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--examples", default=200, show_default=True, help="Requests for each operation.")
@click.option(
    "--url", help="URL of a running server [default: one of the embedded model is started]."
)
def main(examples: int, url: str | None) -> None:
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        url = url or stack.enter_context(served(["--ctx", "256", "--slots", "4"])).url
        counts, faults = fuzz(url, examples)
    for (label, status), count in sorted(counts.items()):
        print(f"{label:34} {status} {count:6}")
    total = sum(counts.values())
    print(f"{total} requests in {time.perf_counter() - started:.0f} s, {len(faults)} faults")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults or not any(status == 200 for _, status in counts) else 0)


if __name__ == "__main__":
    main()

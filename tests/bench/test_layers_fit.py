"""Line through decode steps of models with several numbers of layers."""

import os

import click
import pytest

from bench._layers_fit import environ, fit_rows, line_through, parse_counts
from hybridmoe.env import uses_host_functions


def test_a_line_is_found_again() -> None:
    assert line_through([(2, 1.5), (4, 2.5), (16, 8.5)]) == pytest.approx((0.5, 0.5))
    start, slope = line_through([(2, 1.5), (4, 2.7), (16, 8.5)])
    assert slope == pytest.approx(0.5, abs=0.02) and start == pytest.approx(0.6, abs=0.1)


def test_rows_say_what_a_step_and_a_layer_take() -> None:
    ways = {"counters": (300, 900, 250, 30), "host functions": (500, 950, 450, 80)}
    found = [
        {
            "way": way,
            "layers": n,
            "token_s": 1e-6 * (step + n * layer),
            "neither_s": 1e-6 * (idle_step + n * idle_layer),
        }
        for n in (2, 4, 8)
        for way, (step, layer, idle_step, idle_layer) in ways.items()
    ]
    names = ("decode, a step", "decode, a layer")
    names += tuple(f"GPU and CPU both idle in {name}" for name in names)
    want = {
        f"{way}: {name}": n for way, of in ways.items() for name, n in zip(names, of, strict=True)
    }
    assert {row.name: row.value for row in fit_rows(found)} == pytest.approx(want)


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRIDMOE_HOST_CALLS", raising=False)
    with environ(HYBRIDMOE_HOST_CALLS="1"):
        assert uses_host_functions()
    assert "HYBRIDMOE_HOST_CALLS" not in os.environ and not uses_host_functions()


def test_counts_are_sorted_and_refused_in_one_line() -> None:
    assert parse_counts("8,2,4,2") == (2, 4, 8)
    for text in ("4", "2,2", "1,4", "2,x", "", "2,-4"):
        with pytest.raises(click.BadParameter, match="expected numbers of layers from 2"):
            parse_counts(text)

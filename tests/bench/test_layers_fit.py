"""Line through decode steps of models with several numbers of layers."""

import click
import pytest

from bench._layers_fit import fit_rows, line_through, parse_counts


def test_a_line_is_found_again() -> None:
    assert line_through([(2, 1.5), (4, 2.5), (16, 8.5)]) == pytest.approx((0.5, 0.5))
    start, slope = line_through([(2, 1.5), (4, 2.7), (16, 8.5)])
    assert slope == pytest.approx(0.5, abs=0.02) and start == pytest.approx(0.6, abs=0.1)


def test_rows_say_what_a_step_and_a_layer_take() -> None:
    found = [
        {"layers": n, "token_s": 300e-6 + n * 900e-6, "neither_s": 250e-6 + n * 30e-6}
        for n in (2, 4, 8)
    ]
    assert {row.name: row.value for row in fit_rows(found)} == pytest.approx(
        {
            "decode, a step": 300,
            "decode, a layer": 900,
            "GPU and CPU both idle in decode, a step": 250,
            "GPU and CPU both idle in decode, a layer": 30,
        }
    )


def test_counts_are_sorted_and_refused_in_one_line() -> None:
    assert parse_counts("8,2,4,2") == (2, 4, 8)
    for text in ("4", "2,2", "1,4", "2,x", "", "2,-4"):
        with pytest.raises(click.BadParameter, match="expected numbers of layers from 2"):
            parse_counts(text)

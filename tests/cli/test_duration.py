"""Times on the command line."""

import click
import pytest

from hybridmoe.cli.duration import time_option


@click.command()
@time_option("--idle", help="Idle time")
@time_option("--wait", default="10m", help="Wait")
def command(idle: float | None, wait: float) -> tuple[float | None, float]:
    return idle, wait


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("1.5s", 1.5),
        ("15m", 900),
        ("2H", 7200),
        (" 0 ", 0),
        ("720h", 2592000),
    ],
)
def test_a_time_has_a_unit_or_is_in_seconds(given: str, seconds: float) -> None:
    assert command.main(["--idle", given], standalone_mode=False) == (seconds, 600.0)


def test_defaults_are_shown() -> None:
    assert command.main([], standalone_mode=False) == (None, 600.0)
    text = command.get_help(click.Context(command))
    assert "Idle time [default: never]" in text and "Wait [default: 10m]" in text

"""Sizes: what is printed for an option is a size that the option takes, and on the right side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.errors import ConfigError
from hybridmoe.units import at_least, at_most, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("12GiB", 12 << 30), ("12G", 12 << 30), ("1.5 mib", 3 << 19), ("2KB", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "12 QiB", "12GiBs", "9999999TiB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size such as"):
        parse_bytes(text)


@given(st.integers(0, 1 << 49))
def test_rounded_sizes_are_on_the_side_that_they_say(num_bytes: int) -> None:
    assert parse_bytes(at_most(num_bytes)) <= num_bytes <= parse_bytes(at_least(num_bytes))
    assert parse_bytes(at_least(num_bytes)) - num_bytes <= max(1, num_bytes // 99)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.50 KiB"), (3 << 40, "3.00 TiB")],
)
def test_sizes_are_printed_with_the_largest_unit(size: int, text: str) -> None:
    assert format_bytes(size) == text
